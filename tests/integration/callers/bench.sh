#!/bin/bash
# A measurement, for `make bench`: `ctr run --rm` of echo with rt's own shim, beside containerd's shim of runc. Medians; whole processes.
. "$(dirname "$0")/lib.sh"

rounds=7 namespace=rt-bench-$$
. tests/integration/callers/ctr.sh
containerd_config </dev/null
finish() {
  end_all
  # Where runc's shim had its states.
  rmdir "/run/containerd/runc/$namespace" 2>/dev/null
  rm -rf --one-file-system "$work"
}
trap finish EXIT
start_containerd || exit 1

# once RUNTIME: milliseconds from fork to exit. A process that is waited for, not a clock in it: the shell's own.
once() {
  local begin=${EPOCHREALTIME/./} output
  output=$(ctr run --rm --runtime "$1" --rootfs "$root" "b$RANDOM$RANDOM" /bin/echo hi 2>&1) || { echo "$1: $output" >&2; return 1; }
  [ "$output" = hi ] || { echo "$1 said $output" >&2; return 1; }
  echo $(((${EPOCHREALTIME/./} - begin) / 1000))
}
median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }

once io.containerd.rt.v2 >/dev/null && once io.containerd.runc.v2 >/dev/null || exit 1
for ((round = 0; round < rounds; round++)); do
  once io.containerd.rt.v2 >>"$work/rt" && once io.containerd.runc.v2 >>"$work/runc" || exit 1
done
rt=$(median <"$work/rt") runc=$(median <"$work/runc")
awk -v rt="$rt" -v runc="$runc" 'BEGIN {
  printf "%-60s %10.1f ms\n", "ctr run --rm of echo, runc\047s shim", runc
  printf "%-60s %10.1f ms    ≤ %.1f  %s\n", "ctr run --rm of echo, shim v2", rt, 1.5 * runc, rt <= 1.5 * runc ? "pass" : "miss"
}'
