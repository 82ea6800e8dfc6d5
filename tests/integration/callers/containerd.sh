#!/bin/bash
# containerd 1.6 by ctr: the runc shim (v2) with rt as its binary, and the v1 runtime.
. "$(dirname "$0")/lib.sh"

mkdir -p "$work/image" "$work/oci"
lay_rootfs "$work/image"
containerd_config <<TOML
[plugins."io.containerd.runtime.v1.linux"]
  shim_debug = false
  runtime = "$RT"
TOML
containerd -c "$work/config.toml" >"$work/containerd.log" 2>&1 &
daemon=$!
trap 'kill $daemon 2>/dev/null; wait $daemon 2>/dev/null' EXIT
ctr() { command ctr -a "$work/containerd.sock" "$@"; }
within 30 ctr version || { tail "$work/containerd.log"; exit 1; }

# What ctr runs is a directory with --rootfs: no image is needed.
run() { ctr run --rm --runtime io.containerd.runc.v2 --runc-binary "$RT" --rootfs "$@"; }
root=$work/image

check containerd::run says hi run "$root" a echo hi
check containerd::exit_code exits 7 run "$root" b sh -c 'exit 7'
check containerd::missing_program exits 1 run "$root" c /no/such/program
check containerd::environment says v run --env NAME=v "$root" e sh -c 'echo $NAME'
check containerd::mount says data run --mount "type=bind,src=$work,dst=/v,options=rbind:rw" "$root" m sh -c 'echo data >/v/f; cat /v/f'
check containerd::terminal says /dev/pts/0 on_terminal "ctr -a $work/containerd.sock run --rm -t --runtime io.containerd.runc.v2 --runc-binary $RT --rootfs $root t tty"

started() {
  ctr run -d --runtime io.containerd.runc.v2 --runc-binary "$RT" --rootfs "$root" d \
    sh -c 'trap "exit 3" TERM; while :; do sleep 0.1; done' || return
  ctr task ls | grep -q '^d .*RUNNING'
}
stopped() { ctr task ls | grep -q "^$1 .*STOPPED"; }
check containerd::detached started
check containerd::exec says inside ctr task exec --exec-id x d echo inside
check containerd::pause ctr task pause d
check containerd::paused sh -c "ctr -a $work/containerd.sock task ls | grep -q '^d .*PAUSED'"
check containerd::resume ctr task resume d
check containerd::metrics sh -c "ctr -a $work/containerd.sock task metrics d | grep -qi memory"
check containerd::ps sh -c "ctr -a $work/containerd.sock task ps d | grep -q '[0-9]'"
check containerd::kill ctr task kill -s SIGTERM d
check containerd::stopped within 30 stopped d
deleted() { ctr task delete d 2>&1 | grep -q 'exit code 3'; }
check containerd::delete deleted
check containerd::remove ctr container rm d

v1() { ctr run --rm --runtime io.containerd.runtime.v1.linux --rootfs "$@"; }
check containerd::v1_run says hi v1 "$root" va echo hi
check containerd::v1_exit_code exits 7 v1 "$root" vb sh -c 'exit 7'
check containerd::nothing_is_left no_processes_of "$work"
kill $daemon; wait $daemon 2>/dev/null
summary
