#!/bin/bash
# containerd 1.6 by ctr: the runc shim (v2) with rt as its binary, and the v1 runtime.
. "$(dirname "$0")/lib.sh"

namespace=rt-containerd-$$
. tests/integration/callers/ctr.sh

containerd_config <<TOML
[plugins."io.containerd.runtime.v1.linux"]
  shim_debug = false
  runtime = "$RT"
TOML
start_containerd || exit 1

# What ctr runs is a directory with --rootfs: no image is needed.
run() { ctr run --rm --runtime io.containerd.runc.v2 --runc-binary "$RT" --rootfs "$@"; }

check containerd::run says hi run "$root" a echo hi
check containerd::exit_code exits 7 run "$root" b sh -c 'exit 7'
check containerd::missing_program exits 1 run "$root" c /no/such/program
check containerd::environment says v run --env NAME=v "$root" e sh -c 'echo $NAME'
check containerd::mount says data run --mount "type=bind,src=$work,dst=/v,options=rbind:rw" "$root" m sh -c 'echo data >/v/f; cat /v/f'
check containerd::terminal says /dev/pts/0 on_terminal "$ctr_ run --rm -t --runtime io.containerd.runc.v2 --runc-binary $RT --rootfs $root t tty"

started() {
  ctr run -d --runtime io.containerd.runc.v2 --runc-binary "$RT" --rootfs "$root" d \
    sh -c 'trap "exit 3" TERM; while :; do sleep 0.1; done' || return
  in_state d RUNNING
}
check containerd::detached started
check containerd::exec says inside ctr task exec --exec-id x d echo inside
check containerd::pause ctr task pause d
check containerd::paused in_state d PAUSED
check containerd::resume ctr task resume d
check containerd::metrics sh -c "$ctr_ task metrics d | grep -qi memory"
check containerd::ps sh -c "$ctr_ task ps d | grep -q '[0-9]'"
check containerd::kill ctr task kill -s SIGTERM d
check containerd::stopped within 30 in_state d STOPPED
deleted() { ctr task delete d 2>&1 | grep -q 'exit code 3'; }
check containerd::delete deleted
check containerd::remove ctr container rm d

v1() { ctr run --rm --runtime io.containerd.runtime.v1.linux --rootfs "$@"; }
check containerd::v1_run says hi v1 "$root" va echo hi
check containerd::v1_exit_code exits 7 v1 "$root" vb sh -c 'exit 7'
check containerd::nothing_is_left no_processes_of "$work"
end_containerd TERM
summary
