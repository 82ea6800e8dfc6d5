#!/bin/bash
# Runs tests and says at the end how many passed and failed, alone on the last line.
#
#   all.sh                everything
#   all.sh integration    the integration tests here and in the KVM machine
#   all.sh here|kvm [FILTER]    in one place, those whose names contain FILTER
#   all.sh bench          measurements
#
# "Here" is this machine with software emulation: where its KVM works, the tests run with that and once more with
# /dev/kvm hidden. A stage without a single test has failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
logs=$PWD/target/test
mkdir -p "$logs"
rm -f "$logs"/*.log
export RT_BIN=$PWD/target/release/rt
failed_stages=()
# Tests that failed and passed when they ran once more, alone.
unsteady=()
as_root=(); [ "$(id -u)" = 0 ] || as_root=(sudo -E)

# stage NAME COMMAND...: its output goes to a log, too.
stage() {
  local name=$1 start=$SECONDS status; shift
  echo "== $name: $(cut -c -200 <<<"$*")"
  "$@" 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  echo "== $name: $([ "$status" -eq 0 ] && echo ok || echo "failed with $status"), $((SECONDS - start)) s"
  [ "$status" -eq 0 ] || failed_stages+=("$name")
  return "$status"
}

# again STAGE RUNNER...: what failed in STAGE runs once more, alone, if it is little: on a machine that others use, time itself can fail.
# What fails again has failed; what does not is told at the end.
again() {
  local name=$1 names=() status; shift
  mapfile -t names < <(awk '/^failures:$/ { n = 0; listed = 1; next } /^test result:/ { listed = 0 } listed && /^    [a-z0-9_:]+$/ { list[n++] = $1 }
    END { for (i = 0; i < n; i++) print list[i] }' "$logs/$name.log")
  [ ${#names[@]} -gt 0 ] && [ ${#names[@]} -le 5 ] || return 1
  echo "== $name: once more, alone: ${names[*]}"
  "$@" "${names[@]}" 2>&1 | tee "$logs/$name-again.log"
  status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || { rm "$logs/$name-again.log"; return 1; }
  unsteady+=("${names[@]}")
}

make() { command make --no-print-directory "$@"; }
program() { cat "$logs/program"; }

# Whether rt's own VMM can run a guest with this machine's KVM: rt is asked, not the device file.
kvm_works() {
  make -s bundle >/dev/null && "${as_root[@]}" "$RT_BIN" --hypervisor kvm run -b target/bundle 2>&1 >/dev/null </dev/null | tee "$logs/kvm.txt" >&2
  [ "${PIPESTATUS[0]}" -eq 0 ] && [ ! -s "$logs/kvm.txt" ]
}

# named FILTER...: the tests whose names contain one of them, all without any; a line each.
named() { "$(program)" --list "$@" | sed -n 's/: test$//p' | grep -v '^bench::'; }

# tests STAGE RUNNER... -- ARGUMENTS: a stage that is a run of the test program, and what failed of it again.
tests() {
  local name=$1 runner=(); shift
  while [ "$1" != -- ]; do runner+=("$1"); shift; done; shift
  stage "$name" "${runner[@]}" "$(program)" "$@" && return
  again "$name" "${runner[@]}" "$(program)" --test-threads 1 --exact && unset 'failed_stages[-1]'
}

# here_with STAGE PLACE RUNNER... -- [FILTER...]: fifty machines at once leave others no time, so they run after them, alone.
here_with() {
  local name=$1 place=$2 runner=() beside=() alone=(); shift 2
  while [ "$1" != -- ]; do runner+=("$1"); shift; done; shift
  mapfile -t beside < <(named "$@" | grep -v '^concurrency::')
  mapfile -t alone < <(named "$@" | grep '^concurrency::')
  [ $((${#beside[@]} + ${#alone[@]})) -gt 0 ] || { echo "== no test is named so: $*"; failed_stages+=("$name"); return 1; }
  export RT_TEST_PLACE=$place
  [ ${#beside[@]} -eq 0 ] || tests "$name" "${runner[@]}" -- --test-threads 2 --exact "${beside[@]}"
  [ ${#alone[@]} -eq 0 ] || tests "$name-alone" "${runner[@]}" -- --test-threads 1 --exact "${alone[@]}"
}

here() {
  local hidden='mount --make-rprivate / && { [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm; } && exec "$@"'
  echo "== is there a KVM here that runs a guest?"
  if kvm_works; then
    here_with here-kvm kvm "${as_root[@]}" -- "$@"
    here_with here-emulated emulation "${as_root[@]}" unshare -m sh -c "$hidden" sh -- "$@"
  else
    echo "== no: software emulation"
    here_with here emulation "${as_root[@]}" -- "$@"
  fi
}

# in_machine ARGUMENTS...: the test program in a KVM machine.
in_machine() { "${as_root[@]}" tests/integration/kvm-machine.sh "$(printf '%q ' "$(program)" --test-threads 1 "$@")"; }

# The machine has one processor, so there are two machines where there are processors and memory for them, each with every
# other test. They take ten minutes and more where nothing else runs.
kvm() {
  local machines=1 names=() available chosen pids=() failing=() name i status=0 start=$SECONDS
  mapfile -t names < <(named "$@")
  [ ${#names[@]} -gt 0 ] || { echo "== no test is named so: $*"; failed_stages+=(kvm-machine); return 1; }
  available=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
  [ "$(nproc)" -lt 2 ] || [ "$available" -lt 8192 ] || [ ${#names[@]} -lt 2 ] || machines=2
  export RT_TEST_PLACE=kvm RT_TEST_PATIENCE=${RT_TEST_PATIENCE:-4} KVM_MACHINE_ENV="RT_BIN RT_TEST_PLACE RT_TEST_PATIENCE" \
    KVM_MACHINE_MEM=3072 KVM_MACHINE_TIMEOUT="${KVM_MACHINE_TIMEOUT:-2700}"
  for ((i = 0; i < machines; i++)); do
    mapfile -t chosen < <(printf '%s\n' "${names[@]}" | awk -v i=$i -v n=$machines 'NR % n == i')
    echo "== KVM machine $((i + 1)) of $machines: ${#chosen[@]} tests"
    (in_machine --exact "${chosen[@]}" 2>&1 | tee "$logs/kvm-machine-$((i + 1)).log") &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do
    wait "${pids[i]}" || failing+=("kvm-machine-$((i + 1))")
  done
  for name in "${failing[@]}"; do
    again "$name" in_machine --exact || { failed_stages+=("$name"); status=1; }
  done
  echo "== KVM machine: $([ $status -eq 0 ] && echo ok || echo failed), $((SECONDS - start)) s"
  return $status
}

bench() {
  RT_BENCH_JSON=$logs/bench-here.json stage bench-here "${as_root[@]}" "$(program)" --ignored --nocapture --test-threads 1 bench::
  stage bench-kvm-machine env RT_TEST_PLACE=kvm RT_TEST_PATIENCE=4 KVM_MACHINE_OUT="$logs/kvm-machine" \
    RT_BENCH_JSON="$logs/kvm-machine/bench.json" KVM_MACHINE_ENV="RT_BIN RT_TEST_PLACE RT_TEST_PATIENCE RT_BENCH_JSON" \
    "${as_root[@]}" tests/integration/kvm-machine.sh "$(printf '%q ' "$(program)" --ignored --nocapture --test-threads 1 bench::)"
  # Where programs are no longer in memory when they are called again, as on a disk over a network.
  stage bench-starts-virtiofs env KVM_MACHINE_ROOT=virtiofs RT_BENCH_PART=starts RT_TEST_PLACE=kvm RT_TEST_PATIENCE=4 \
    KVM_MACHINE_ENV="RT_BIN RT_TEST_PLACE RT_TEST_PATIENCE RT_BENCH_PART" \
    "${as_root[@]}" tests/integration/kvm-machine.sh "$(printf '%q ' "$(program)" --ignored --nocapture --test-threads 1 bench::all)"
  stage bench-shim-kvm-machine env RT_TEST_PATIENCE=4 KVM_MACHINE_ENV="RT_BIN RT_TEST_PATIENCE" "${as_root[@]}" \
    tests/integration/kvm-machine.sh tests/integration/callers/bench.sh
}

# Adds libtest's closing lines up. A stage that failed, or should have run tests and ran none, counts as one more.
summary() {
  local passed=0 failed=0 ignored=0 p f i log name
  for log in "$logs"/*.log; do
    read -r p f i < <(sed -nE 's/.*test result: .* ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored.*/\1 \2 \3/p' "$log" |
      awk '{ p += $1; f += $2; i += $3 } END { print p + 0, f + 0, i + 0 }')
    name=$(basename "$log" .log)
    case $name in
      unit | here* | kvm-machine*) [ $((p + f)) -gt 0 ] || { echo "== $name ran no test"; f=1; } ;;
    esac
    [[ " ${failed_stages[*]-} " != *" $name "* ]] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p)) failed=$((failed + f)) ignored=$((ignored + i))
  done
  grep -hE '^skipped: ' "$logs"/*.log 2>/dev/null | sort | uniq -c || true
  [ ${#unsteady[@]} -eq 0 ] || echo "== failed beside others and passed alone: ${unsteady[*]}"
  failed=$((failed - ${#unsteady[@]}))
  [ ${#failed_stages[@]} -eq 0 ] || echo "== failed: ${failed_stages[*]}"
  [ $((passed + failed)) -gt 0 ] || { echo "== no test ran"; failed=1; }
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}

case ${1:-} in
  '')
    stage lint make lint
    stage unit make unit-test
    stage build make integration && { here; kvm; }
    ;;
  integration) stage build make integration && { here; kvm; } ;;
  here | kvm) place=$1; shift; stage build make integration && "$place" "$@" ;;
  bench) bench; exit $((${#failed_stages[@]} > 0)) ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
summary
