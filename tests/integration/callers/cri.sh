#!/bin/bash
# containerd 1.6's CRI plugin with rt's own shim, as the kubelet calls it: a pod of two containers in one virtual machine.
# crictl is not in Debian: cri.py calls the same methods.
. "$(dirname "$0")/lib.sh"
. tests/integration/callers/image.sh

here=$PWD/tests/integration/callers
mkdir -p "$work/image" "$work/cni" "$work/logs" "$work/host/etc/containerd"
lay_rootfs "$work/image"
# rt install wires it below a root directory, in which the workspace is at its own path.
mkdir -p "$work/host${work%/*}"
ln -s "$work" "$work/host$work"
config=$work/host/etc/containerd/config.toml
cat >"$work/cni/10-rt.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "rt-cri-$$", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.213.7.0/30", "dataDir": "$work/ipam"}}]}
JSON
cat >"$config" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
[grpc]
  address = "$work/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$work/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "rt.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$work/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "rt"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runcs]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runcs.options]
        BinaryName = "$RT"
        Root = "$work/runcs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.configured]
      runtime_type = "io.containerd.rt.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.configured.options]
        ConfigPath = "$work/rt.toml"
    [plugins."io.containerd.grpc.v1.cri".containerd.untrusted_workload_runtime]
      runtime_type = "io.containerd.runtime.v1.linux"
      runtime_engine = "$RT"
TOML
socket=$work/containerd.sock
"$RT" install containerd --into "$work/host" --binary "$RT" || exit 1
start_containerd() {
  containerd -c "$config" >>"$work/containerd.log" 2>&1 &
  daemon=$!
  within 60 ctr version && within 60 cri ListPodSandbox
}
ctr() { command ctr -a "$socket" -n k8s.io "$@"; }
cri() { "$here/cri.py" "$socket" "$@"; }
# field NAME: of the reply on standard input.
field() { python3 -c 'import functools, json, sys; print(functools.reduce(lambda tree, name: tree[name], sys.argv[1].split("."), json.load(sys.stdin)))' "$1"; }
pod= one= two=
finish() {
  [ -z "$pod" ] || { cri StopPodSandbox pod_sandbox_id="$pod"; cri RemovePodSandbox pod_sandbox_id="$pod"; } >/dev/null 2>&1
  kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null
}
trap finish EXIT
start_containerd >/dev/null || { tail "$work/containerd.log"; exit 1; }
make_image "$work/pause.tar" rt.test/pause:1 "$work/image" '["sh", "-c", "trap \"exit 0\" TERM; while :; do sleep 1; done"]'
make_image "$work/busybox.tar" rt.test/busybox:1 "$work/image"
for image in pause busybox; do
  ctr image import --snapshotter native "$work/$image.tar" >/dev/null || { tail "$work/containerd.log"; exit 1; }
done

sandbox=(config.metadata.name=pod config.metadata.uid=u$$ config.metadata.namespace=default config.hostname=pod-host
  config.log_directory="$work/logs")
# The network has an address for one pod.
# ran HANDLER [FIELD=VALUE…]: its ID is in $work/pod.
ran() {
  local handler=$1; shift
  cri RunPodSandbox "${sandbox[@]}" runtime_handler="$handler" "$@" >"$work/reply" || return
  field pod_sandbox_id <"$work/reply" >"$work/pod"
}
# created NAME SCRIPT [FIELD=VALUE…]: its ID is in $work/NAME.
created() {
  local name=$1 script=$2; shift 2
  cri CreateContainer pod_sandbox_id="$pod" "${sandbox[@]/#config./sandbox_config.}" config.metadata.name="$name" \
    config.image.image=rt.test/busybox:1 "config.command=[\"sh\", \"-c\", \"$script\"]" config.log_path="$name.log" "$@" \
    >"$work/reply" || return
  field container_id <"$work/reply" >"$work/$name"
}
started() { cri StartContainer container_id="$1" >/dev/null; }
# 1 is running, 2 has exited.
in_state() { [ "$(cri ContainerStatus container_id="$1" | field status.state)" = "$2" ]; }
executed() { cri ExecSync container_id="$1" "cmd=[\"sh\", \"-c\", \"$2\"]" timeout=60 | python3 -c 'import base64, json, sys; reply = json.load(sys.stdin); sys.stdout.write(base64.b64decode(reply["stdout"]).decode()); sys.exit(reply["exit_code"])'; }
logged() { grep -q "stdout F $2" "$work/logs/$1.log"; }

check cri::pod_runs ran rt
pod=$(cat "$work/pod" 2>/dev/null)
no_address() {
  local namespaces reply; namespaces=$(ls /run/netns)
  reply=$(cri RunPodSandbox "${sandbox[@]}" config.metadata.name=other runtime_handler=rt 2>&1) && return 1
  case $reply in *'no IP addresses available'*) ;; *) echo "$reply"; return 1 ;; esac
  [ "$(ls /run/netns)" = "$namespaces" ] && one_shim
}
loop='trap \"exit 3\" TERM; echo up; while :; do sleep 0.2; done'
check cri::first_container created one "$loop" config.linux.resources.memory_limit_in_bytes=67108864
check cri::second_container created two "$loop"
one=$(cat "$work/one" 2>/dev/null) two=$(cat "$work/two" 2>/dev/null)
check cri::start_first started "$one"
check cri::start_second started "$two"
check cri::running within 10 in_state "$one" 1
one_shim() { [ "$(pgrep -f "containerd-shim-rt-v2 .*-address $socket" | wc -l)" = 1 ]; }
no_monitors() { ! pgrep -af "rt monitor ($pod|$one|$two)"; }
check cri::one_shim_a_pod one_shim
check cri::no_monitors no_monitors
check cri::address_space_is_full no_address
check cri::log within 30 logged two up
check cri::exec says inside executed "$one" 'echo inside'
check cri::exec_exit_code exits 4 executed "$two" 'exit 4'
check cri::hostname_is_the_pods says pod-host executed "$two" hostname
one_machine() {
  local first second
  first=$(executed "$one" 'cat /proc/sys/kernel/random/boot_id') && second=$(executed "$two" 'cat /proc/sys/kernel/random/boot_id') &&
    [ "$first" = "$second" ] && [ "$first" != "$(cat /proc/sys/kernel/random/boot_id)" ]
}
check cri::one_machine one_machine
statistics() {
  local stats; stats=$(cri ContainerStats container_id="$one")
  echo "$stats"
  [ "$(field stats.memory.working_set_bytes.value <<<"$stats")" -gt 10000 ] &&
    [ "$(field stats.cpu.usage_core_nano_seconds.value <<<"$stats")" -gt 0 ]
}
check cri::stats statistics
updated() {
  cri UpdateContainerResources container_id="$one" linux.memory_limit_in_bytes=50331648 >/dev/null &&
    says 50331648 executed "$one" 'cat /sys/fs/cgroup/memory.max'
}
check cri::update updated
# attached CONTAINER INPUT EXPECTED [FIELD=VALUE…]: what is typed there, and what comes of it.
attached() {
  local id=$1 input=$2 expected=$3 url; shift 3
  url=$(cri Attach container_id="$id" stdin=true stdout=true "$@" | field url) || return
  printf "$input" | "$here/cri_stream.py" "$url" 1 "$expected"
}
reads='echo up; while read line; do echo got $line; done; echo end of input'
interactive() { created "$1" "$2" config.stdin=true "${@:3}" && started "$(cat "$work/$1")" && within 30 logged "$1" up; }
check cri::interactive_container interactive asks "$reads"
asks=$(cat "$work/asks" 2>/dev/null)
check cri::attach attached "$asks" 'one\n' 'got one'
check cri::attach_again attached "$asks" 'two\n' 'got two'
check cri::what_is_attached_to_is_logged within 10 logged asks 'got two'
once() {
  interactive once "$reads" config.stdin_once=true && attached "$(cat "$work/once")" 'three\n' 'got three' &&
    within 30 logged once 'end of input' && within 10 in_state "$(cat "$work/once")" 2
}
check cri::attach_to_an_input_of_one_time once
terminal() {
  created tty 'stty -echo; echo up; exec sh' config.stdin=true config.tty=true && started "$(cat "$work/tty")" &&
    within 30 grep -q up "$work/logs/tty.log" && attached "$(cat "$work/tty")" 'tty; echo $((40 + 2))\n' 42 tty=true | grep -q /dev/pts/0
}
check cri::attach_to_a_terminal terminal
# forwarded PORT: what a server in the pod says to who connects to the port as kubectl port-forward does.
forwarded() {
  local url; url=$(cri PortForward pod_sandbox_id="$pod" "port=[$1]" | field url) || return
  printf 'GET /page HTTP/1.0\r\n\r\n' | "$here/cri_stream.py" "$url" 0 "$2"
}
servers='echo the page of the pod >/tmp/page; httpd -h /tmp -p 0.0.0.0:8080; httpd -h /tmp -p 127.0.0.1:8081'
check cri::servers executed "$two" "$servers"
check cri::port_forward forwarded 8080 'the page of the pod'
check cri::port_forward_to_the_loopback forwarded 8081 'the page of the pod'
check cri::stop_one cri StopContainer container_id="$one" timeout=20
exited() { in_state "$one" 2 && [ "$(cri ContainerStatus container_id="$one" | field status.exit_code)" = 3 ]; }
check cri::stopped within 10 exited
check cri::the_other_lives says alive executed "$two" 'echo alive'
check cri::remove_one cri RemoveContainer container_id="$one"
created_again() { created one 'exit 5' && one=$(cat "$work/one") && started "$one" && within 30 in_state "$one" 2; }
check cri::another_in_its_place created_again
# died_in METHOD [FIELD=VALUE…]: containerd is killed in the middle of that call, and started again.
died_in() {
  cri "$@" >/dev/null 2>&1 & local client=$!
  sleep 0.3
  kill -KILL "$daemon"; wait "$daemon" $client 2>/dev/null
  start_containerd
}
# The pod goes on, and what was asked has happened or has not.
died_in_update() {
  died_in UpdateContainerResources container_id="$two" linux.memory_limit_in_bytes=50331648 &&
    executed "$two" 'cat /sys/fs/cgroup/memory.max' | grep -xE 'max|50331648'
}
check_here cri::containerd_dies_in_update died_in_update
died_in_exec() { died_in ExecSync container_id="$two" 'cmd=["sleep", "2"]' timeout=60 && says alive executed "$two" 'echo alive'; }
check_here cri::containerd_dies_in_exec died_in_exec
# As the kubelet goes on: what it finds it removes, and makes another.
died_in_start() {
  created half "$loop" && died_in StartContainer container_id="$(cat "$work/half")" || return
  cri StopContainer container_id="$(cat "$work/half")" timeout=10
  cri RemoveContainer container_id="$(cat "$work/half")" && created half "$loop" && started "$(cat "$work/half")" &&
    says alive executed "$(cat "$work/half")" 'echo alive'
}
check_here cri::containerd_dies_in_start died_in_start
check cri::stop_pod cri StopPodSandbox pod_sandbox_id="$pod"
ended() { in_state "$two" 2; }
check cri::pod_ends_its_containers within 10 ended
check cri::remove_pod cri RemovePodSandbox pod_sandbox_id="$pod"
gone() { [ -z "$("$RT" --root /run/containerd/rt/k8s.io list -q | grep -E "$pod|$two")" ] && no_processes_of "$pod"; }
check cri::nothing_is_left within 20 gone
no_shim() { ! pgrep -f "containerd-shim-rt-v2 .*-address $socket"; }
check cri::no_shim_is_left within 10 no_shim
pod=

# A pod whose machine or shim is killed: its containers have died of it, it can be had away, and the next of its name comes up.
# died WHOSE CODE…
died() {
  local victim=$1 name; shift
  ran rt && pod=$(cat "$work/pod") || return
  for name in one two; do created $name "$loop" && started "$(cat "$work/$name")" || return; done
  one=$(cat "$work/one") two=$(cat "$work/two")
  # shellcheck disable=SC2046
  kill -KILL $($victim "$pod") || return
  for name in $one $two; do within 60 in_state $name 2 && code_is "$name" "$@" || return; done
  within 30 no_processes_of "$pod" || return
  for name in $one $two; do cri RemoveContainer container_id=$name || return; done
  cri StopPodSandbox pod_sandbox_id="$pod" && cri RemovePodSandbox pod_sandbox_id="$pod" && within 20 gone && within 10 no_shim || return
  ran rt && pod=$(cat "$work/pod") && created one "$loop" && started "$(cat "$work/one")" && says alive executed "$(cat "$work/one")" 'echo alive' &&
    cri StopPodSandbox pod_sandbox_id="$pod" && cri RemovePodSandbox pod_sandbox_id="$pod" && pod=
}
code_is() {
  local code; code=$(cri ContainerStatus container_id="$1" | field status.exit_code)
  case " ${*:2} " in *" $code "*) ;; *) echo "exit code $code"; return 1 ;; esac
}
shim_of() { pgrep -f "containerd-shim-rt-v2 -namespace k8s.io -id $1 "; }
check_here cri::machine_is_killed died vmm_of 137 255
check_here cri::shim_is_killed died shim_of 137 255

# The kubelet's next attempt works, whatever came of the first.
died_in_pod() {
  died_in RunPodSandbox "${sandbox[@]}" config.metadata.attempt=1 runtime_handler=rt || return
  local id
  for id in $(cri ListPodSandbox | python3 -c 'import json, sys; print(*(item["id"] for item in json.load(sys.stdin)["items"]))'); do
    cri StopPodSandbox pod_sandbox_id="$id" && cri RemovePodSandbox pod_sandbox_id="$id" || return
  done
  ran rt config.metadata.attempt=2 && pod=$(cat "$work/pod") && one_shim &&
    cri StopPodSandbox pod_sandbox_id="$pod" && cri RemovePodSandbox pod_sandbox_id="$pod" && within 20 gone && within 10 no_shim
}
check_here cri::containerd_dies_in_run_pod died_in_pod
pod=

# pod_of HANDLER COMMAND…: that succeeds for a pod of two containers, which then stop and go.
pod_of() {
  local handler=$1 name; shift
  ran "$handler" "${of_pod[@]}" && pod=$(cat "$work/pod") || return
  for name in one two; do created $name "$loop" "${of_container[@]}" && started "$(cat "$work/$name")" || return; done
  one=$(cat "$work/one") two=$(cat "$work/two")
  "$@" && cri StopContainer container_id="$one" timeout=20 && within 10 exited && says alive executed "$two" 'echo alive' &&
    cri StopPodSandbox pod_sandbox_id="$pod" && within 10 ended && cri RemovePodSandbox pod_sandbox_id="$pod" &&
    within 20 no_processes_of "$pod" && pod=
}
of_pod=() of_container=()
by_runcs_shim() { one_machine && within 30 logged two up && says pod-host executed "$two" hostname; }
# The next one does not suffer from what is left of one that failed.
check_pod() {
  check_here "$1" pod_of "${@:2}"
  [ -z "$pod" ] || { cri StopPodSandbox pod_sandbox_id="$pod"; cri RemovePodSandbox pod_sandbox_id="$pod"; pod=; } >/dev/null 2>&1
}
check_pod cri::runcs_shim runcs by_runcs_shim
of_pod=(config.linux.security_context.privileged=true) of_container=({config,sandbox_config}.linux.security_context.privileged=true)
# containerd gives the capabilities that it has itself.
privileged() {
  says mounted executed "$one" 'mount -t tmpfs none /tmp && echo mounted' && says none executed "$one" 'ls /dev/kvm /dev/loop-control 2>/dev/null || echo none' &&
    says "$(sed -n s/CapEff:.//p /proc/self/status)" executed "$one" 'sed -n s/CapEff:.//p /proc/self/status'
}
check_pod cri::privileged rt privileged
of_pod=() of_container=()
printf '[hypervisor]\nkernel_parameters = "rt.test=configured"\n' >"$work/rt.toml"
configured() { executed "$one" 'cat /proc/cmdline' | grep rt.test=configured; }
check_pod cri::config_path configured configured
# What a container holds and burns is what is told of it: between two looks from within.
used() {
  local usage='sed -n s/usage_usec.//p /sys/fs/cgroup/cpu.stat' before after told memory stats busy
  created busy 'x=$(head -c 30000000 /dev/zero | tr \"\\0\" x); echo up; while :; do :; done' && busy=$(cat "$work/busy") && started "$busy" &&
    within 60 logged busy up || return
  before=$(executed "$busy" "$usage") && sleep 2 && stats=$(cri ContainerStats container_id="$busy") && after=$(executed "$busy" "$usage") || return
  told=$(($(field stats.cpu.usage_core_nano_seconds.value <<<"$stats") / 1000)) memory=$(field stats.memory.working_set_bytes.value <<<"$stats")
  echo "cpu $before <= $told <= $after; memory $memory"
  [ $((before + 500000)) -le $told ] && [ $told -le "$after" ] && [ "$memory" -ge 30000000 ] && [ "$memory" -lt 100000000 ]
}
check_pod cri::stats_are_what_is_used rt used

# containerd's v1 runtime, for pods that call themselves untrusted.
check cri::untrusted_pod_runs ran '' 'config.annotations={"io.kubernetes.cri.untrusted-workload": "true"}'
pod=$(cat "$work/pod" 2>/dev/null)
check cri::untrusted_container created old "$loop"
old=$(cat "$work/old" 2>/dev/null)
check cri::untrusted_start started "$old"
check cri::untrusted_exec says inside executed "$old" 'echo inside'
check cri::untrusted_stop cri StopPodSandbox pod_sandbox_id="$pod"
check cri::untrusted_remove cri RemovePodSandbox pod_sandbox_id="$pod"
pod=
kill $daemon; wait $daemon 2>/dev/null
summary
