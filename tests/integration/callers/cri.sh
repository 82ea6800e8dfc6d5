#!/bin/bash
# containerd 1.6's CRI plugin with rt's own shim, as the kubelet calls it: a pod of two containers in one virtual machine.
# crictl is not in Debian: cri.py calls the same methods.
. "$(dirname "$0")/lib.sh"
. tests/integration/callers/image.sh

here=$PWD/tests/integration/callers
mkdir -p "$work/image" "$work/bin" "$work/cni" "$work/logs"
lay_rootfs "$work/image"
ln -s "$RT" "$work/bin/containerd-shim-rt-v2"
cat >"$work/cni/10-rt.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "rt-cri-$$", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.213.7.0/24", "dataDir": "$work/ipam"}}]}
JSON
cat >"$work/config.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
[grpc]
  address = "$work/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "rt.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$work/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "rt"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.rt]
      runtime_type = "io.containerd.rt.v2"
      privileged_without_host_devices = true
    [plugins."io.containerd.grpc.v1.cri".containerd.untrusted_workload_runtime]
      runtime_type = "io.containerd.runtime.v1.linux"
      runtime_engine = "$RT"
TOML
PATH=$work/bin:$PATH containerd -c "$work/config.toml" >"$work/containerd.log" 2>&1 &
daemon=$!
socket=$work/containerd.sock
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
within 60 ctr version || { tail "$work/containerd.log"; exit 1; }
make_image "$work/pause.tar" rt.test/pause:1 "$work/image" '["sh", "-c", "trap \"exit 0\" TERM; while :; do sleep 1; done"]'
make_image "$work/busybox.tar" rt.test/busybox:1 "$work/image"
for image in pause busybox; do
  ctr image import --snapshotter native "$work/$image.tar" >/dev/null || { tail "$work/containerd.log"; exit 1; }
done

sandbox=(config.metadata.name=pod config.metadata.uid=u$$ config.metadata.namespace=default config.hostname=pod-host
  config.log_directory="$work/logs")
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
check cri::stop_one cri StopContainer container_id="$one" timeout=20
exited() { in_state "$one" 2 && [ "$(cri ContainerStatus container_id="$one" | field status.exit_code)" = 3 ]; }
check cri::stopped within 10 exited
check cri::the_other_lives says alive executed "$two" 'echo alive'
check cri::remove_one cri RemoveContainer container_id="$one"
created_again() { created one 'exit 5' && one=$(cat "$work/one") && started "$one" && within 30 in_state "$one" 2; }
check cri::another_in_its_place created_again
check cri::stop_pod cri StopPodSandbox pod_sandbox_id="$pod"
ended() { in_state "$two" 2; }
check cri::pod_ends_its_containers within 10 ended
check cri::remove_pod cri RemovePodSandbox pod_sandbox_id="$pod"
gone() { [ -z "$("$RT" --root /run/containerd/rt/k8s.io list -q | grep -E "$pod|$two")" ] && no_processes_of "$pod"; }
check cri::nothing_is_left within 20 gone
no_shim() { ! pgrep -f "containerd-shim-rt-v2 .*-address $socket"; }
check cri::no_shim_is_left within 10 no_shim
pod=

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
