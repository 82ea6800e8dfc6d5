#!/bin/bash
# containerd 1.6 with rt's own shim: the runtime io.containerd.rt.v2, by ctr.
. "$(dirname "$0")/lib.sh"
namespace=rt-shim-$$
. tests/integration/callers/image.sh
. tests/integration/callers/ctr.sh

ln -s "$RT" "$work/bin/containerd-shim-kata-v2"
containerd_config </dev/null
start_containerd || exit 1
make_image "$work/busybox.tar" rt.test/busybox:1 "$work/image"
ctr image import "$work/busybox.tar" >/dev/null || exit 1

run() { ctr run --rm --runtime $runtime --rootfs "$@"; }

ctr events >"$work/events" 2>&1 &
events=$!
check shim::run says hi run "$root" a echo hi
check shim::exit_code exits 7 run "$root" b sh -c 'exit 7'
check shim::other_name says hi ctr run --rm --runtime io.containerd.kata.v2 --rootfs "$root" k echo hi
check shim::image says hi ctr run --rm --snapshotter native --runtime $runtime rt.test/busybox:1 i echo hi
nothing_is_mounted() { ! grep -q "$work/state" /proc/self/mountinfo; }
check shim::image_is_not_mounted_on_the_host nothing_is_mounted
missing() {
  local output
  output=$(run "$root" c /no/such/program 2>&1) && return 1
  case $output in *'/no/such/program'*'no such file or directory'*) ;; *) echo "$output"; return 1 ;; esac
}
check shim::missing_program missing
missing_in_path() {
  local output
  output=$(run "$root" c2 nosuchprogram 2>&1) && return 1
  case $output in *'executable file not found in $PATH'*) ;; *) echo "$output"; return 1 ;; esac
}
check shim::missing_word missing_in_path
standard_input() { says 3 sh -c "printf 'a\nb\nc\n' | $ctr_ run --rm --runtime $runtime --rootfs $root s wc -l"; }
check shim::standard_input standard_input
binary() {
  head -c 3000000 /dev/urandom >"$work/random"
  ctr run --rm --runtime $runtime --rootfs --mount "type=bind,src=$work,dst=/v,options=rbind:ro" "$root" o \
    cat /v/random >"$work/copy" && cmp "$work/random" "$work/copy"
}
check shim::output_is_whole binary
check shim::standard_error says err sh -c "$ctr_ run --rm --runtime $runtime --rootfs $root e sh -c 'echo err >&2' 2>&1 >/dev/null"
# script(1) types a NUL when its own input ends, which the terminal shows as ^@.
check shim::terminal says /dev/pts/0 sh -c "script -qec '$ctr_ run --rm -t --runtime $runtime --rootfs $root t tty' /dev/null | tr -d '\r' | sed 's/^\^@//'"
check shim::terminal_size says '33 99' sh -c "script -qec 'stty rows 33 cols 99; $ctr_ run --rm -t --runtime $runtime --rootfs $root u sh -c \"sleep 0.5; stty size\"' /dev/null | tr -d '\r' | sed 's/^\^@//'"
bad_bundle() {
  local output
  output=$(ctr run --rm --runtime $runtime --rootfs --mount type=bind,src=/no/such,dst=/v,options=bind "$root" g true 2>&1) && return 1
  case $output in *'/no/such'*'No such file or directory'*) ;; *) echo "$output"; return 1 ;; esac
}
check shim::bad_bundle_is_told bad_bundle
printf '[hypervisor]\nno_such_key = 1\n' >"$work/bad.toml"
bad_config() {
  local output
  output=$(ctr run --rm --runtime $runtime --runtime-config-path "$work/bad.toml" --rootfs "$root" h true 2>&1) && return 1
  case $output in *bad.toml*no_such_key*) ;; *) echo "$output"; return 1 ;; esac
}
check shim::config_path bad_config

started() {
  ctr run -d --runtime $runtime --rootfs "$root" "$1" sh -c 'trap "exit 3" TERM; while :; do sleep 0.1; done' || return
  in_state "$1" RUNNING
}
check shim::detached started d
check shim::exec says inside ctr task exec --exec-id x d echo inside
check shim::exec_exit_code exits 5 ctr task exec --exec-id x d sh -c 'exit 5'
check shim::exec_missing_program exits 1 ctr task exec --exec-id x d /no/such
check shim::exec_standard_input says 2 sh -c "printf 'a\nb\n' | $ctr_ task exec --exec-id x d wc -l"
check shim::exec_terminal says /dev/pts/0 sh -c "script -qec '$ctr_ task exec -t --exec-id y d tty' /dev/null | tr -d '\r' | sed 's/\^@//g'"
killed_exec() {
  ctr task exec --exec-id z d sleep 1000 & local client=$!
  within 30 sh -c "$ctr_ task ps d | wc -l | grep -qv '^[012]$'"
  within 10 ctr task kill --exec-id z -s SIGKILL d
  wait $client; [ $? -eq 137 ]
}
check shim::exec_kill killed_exec
check shim::pause ctr task pause d
check shim::paused in_state d PAUSED
check shim::resume ctr task resume d
check shim::resumed in_state d RUNNING
metrics() {
  local text; text=$(ctr task metrics d)
  echo "$text"
  [ "$(awk '$1 == "memory.usage_in_bytes" || $1 == "memory.usage" { print ($2 > 100000) }' <<<"$text")" = 1 ] &&
    [ "$(awk '$1 == "pids.current" { print ($2 >= 1) }' <<<"$text")" = 1 ] &&
    [ "$(awk '$1 == "cpuacct.usage" || $1 == "cpu.usage_usec" { print ($2 > 0) }' <<<"$text")" = 1 ]
}
check shim::metrics metrics
check shim::ps sh -c "$ctr_ task ps d | grep -q '^[0-9]'"
# Without a path in the spec, callers find the network namespace by the task's PID, as with runc's shim.
network_by_pid() {
  local pid; pid=$(ctr task ls | awk '$1 == "d" { print $2 }')
  [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ] || { echo "the task is in the host's network"; return 1; }
  ip link add "rts$$" type veth peer name eth0 netns "$pid" && ip addr add 10.214.7.1/30 dev "rts$$" && ip link set "rts$$" up &&
    nsenter -t "$pid" -n sh -c 'ip addr add 10.214.7.2/30 dev eth0 && ip link set eth0 up' &&
    within 30 busybox ping -c 1 -W 1 10.214.7.2 && ip link del "rts$$"
}
check shim::network_by_pid network_by_pid
check shim::running_is_not_deleted sh -c "! $ctr_ task delete d"
kill $events 2>/dev/null; wait $events 2>/dev/null
told() {
  local topic
  for topic in /tasks/create /tasks/start /tasks/exec-added /tasks/exec-started /tasks/paused /tasks/resumed /tasks/exit /tasks/delete; do
    grep -q "$topic" "$work/events" || { echo "no $topic"; cat "$work/events"; return 1; }
  done
}
check shim::events told
restarted() {
  local shim; shim=$(shim_of d)
  end_containerd "$1" && start_containerd && [ "$(shim_of d)" = "$shim" ] && in_state d RUNNING &&
    says again ctr task exec --exec-id r d echo again
}
check_here shim::survives_a_restart_of_containerd restarted TERM
check_here shim::survives_a_crash_of_containerd restarted KILL
check shim::kill ctr task kill -s SIGTERM d
check shim::stopped within 30 in_state d STOPPED
check shim::kill_of_a_stopped_one sh -c "$ctr_ task kill d 2>&1 | grep -q 'not found'"
deleted() { ctr task delete d 2>&1 | grep -q 'exit code 3'; }
check shim::delete deleted
check shim::remove ctr container rm d
check shim::shim_has_ended within 10 gone d

# The shim dies: containerd cleans up.
check shim::detached_again started f
crashed() {
  kill -KILL "$(shim_of f)"
  within 60 sh -c "! $ctr_ task ls | grep '^f ' | grep -qv STOPPED"
}
check shim::crash_is_cleaned_up crashed
check shim::nothing_is_left_of_the_crash within 30 no_processes_of f
check shim::no_state_is_left within 10 no_state
ctr task delete f >/dev/null 2>&1; ctr container rm f

# Its client is gone, and with it who reads.
unread() {
  command $ctr_ run --runtime $runtime --rootfs "$root" y yes >/dev/null &
  local client=$!
  within 30 in_state y RUNNING && kill -KILL $client && ctr task kill -s SIGKILL y && within 40 in_state y STOPPED &&
    ctr task delete y
  ctr container rm y
}
check shim::unread_output_ends_with_sigkill unread

# A guest that does nothing any more: what is killed ends nevertheless, and its pod with it.
printf '[agent]\ntimeout_ms = 2000\n' >"$work/impatient.toml"
in_pod() {
  ctr run -d --runtime $runtime --runtime-config-path "$work/impatient.toml" --annotation io.kubernetes.cri.container-type="$2" \
    --annotation io.kubernetes.cri.sandbox-id=p --rootfs "$root" "$1" sleep 100000 && in_state "$1" RUNNING
}
stopped_vm() { kill -STOP "$(sed 's/.*"vm":{[^}]*"pid":\([0-9]*\).*/\1/' "/run/containerd/rt/$namespace/p/state.json")"; }
# The others of the pod are not asked to pay for an exec.
hung_exec() {
  ctr task exec --exec-id h q sleep 1000 & local client=$!
  within 30 sh -c "$ctr_ task ps q | wc -l | grep -qv '^[012]$'" && stopped_vm || return
  ctr task kill --exec-id h -s SIGKILL q
  within 120 sh -c "! kill -0 $client 2>/dev/null" || return
  wait $client; [ $? -eq 137 ] && in_state p RUNNING && in_state q RUNNING
}
hung() {
  within 60 ctr task kill -s SIGKILL q
  within 120 in_state q STOPPED && within 10 in_state p STOPPED && ctr task delete q 2>&1 | grep -q 'exit code 137' || return
  ctr task delete p; ctr container rm q p
}
check shim::pod in_pod p sandbox
check shim::pod_is_joined in_pod q container
check shim::exec_in_a_hung_guest_ends hung_exec
check shim::hung_guest_is_ended_with_what_was_killed hung

check shim::no_shim_is_left within 10 no_shim
check shim::nothing_is_left no_processes_of "$work"
end_containerd TERM
summary
