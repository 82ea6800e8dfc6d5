#!/bin/bash
# Runs runc's own test suite with rt in runc's place, and holds what comes out against expected.txt.
#
#   run.sh                  every test, with rt and with runc beside it
#   run.sh passes FILE...   what is listed as passing, with rt; with FILE (exec.bats) these only
#   run.sh show FILE...     these .bats files with rt, and what failed says
#
# expected.txt has every test of the suite, FILE: NAME => pass, or the reason why a virtual machine cannot. A listed pass that fails, a
# listed reason for a test that passes (unless it begins with "now and then: "), and a test that is not listed are errors. What the suite itself skips here (rootless, systemd, CRIU) counts for nothing.
#
# Tests for cgroup v2 are skipped by the suite on a host with v1. The guest's cgroups are always v2: with rt they run all the same.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../.."
RT=${RT_BIN:-$PWD/target/release/rt}
die() { echo "conformance: $*" >&2; exit 1; }
[ -x "$RT" ] || die "there is no $RT to test; run \`make build\`"
[ "$(id -u)" = 0 ] || die "the suite wants root"
work=$PWD/target/conformance
mode=${1:-all}
# Seconds for one call of the runtime, so that the test that made it fails and the next has its turn; and for one file, should a test wait
# for something else for ever: those behind it have failed then, too. (bats' own limit does not go with tests that wait for their children.)
call_limit=$((120 * ${RT_TEST_PATIENCE:-1}))
limit=$((300 * ${RT_TEST_PATIENCE:-1}))
guest_cgroups=(CGROUP_UNIFIED=yes CGROUP_BASE_PATH=/sys/fs/cgroup
  "CGROUP_SUBSYSTEMS=cpuset cpu io memory pids devices freezer hugetlb")

# suite LOG RUNTIME ENVIRONMENT... -- FLAGS...: bats, with the terminal that it wants; what a test leaves goes with it.
suite() {
  local log=$1 runtime=$2 environment=() tmp state id; shift 2
  while [ "$1" != -- ]; do environment+=("$1"); shift; done
  shift
  tmp=$(mktemp -d /tmp/rt-bats-XXXXXX)
  chmod a+x "$tmp"
  printf '#!/bin/sh\nexec timeout --foreground --signal KILL %d %q "$@"\n' "$call_limit" "$runtime" >"$tmp/runtime"
  chmod a+x "$tmp/runtime"
  # A terminal on which nobody types: at the end of its own input script(1) would type an end of file.
  mkfifo "$tmp/nobody"
  env "TMPDIR=$tmp" "RUNC=$tmp/runtime" "${environment[@]}" timeout -k 10 "$limit" \
    script -qefc "$(printf '%q ' bats --tap --no-tempdir-cleanup "$@")" /dev/null <>"$tmp/nobody" 2>&1 | tr -d '\r' >"$log"
  for state in "$tmp"/*/runc.*/state; do
    for id in $("$tmp/runtime" --root "$state" list -q 2>/dev/null); do "$tmp/runtime" --root "$state" delete --force "$id"; done
  done
  rm -rf --one-file-system "$tmp"
}

# one RUNTIME FILE [FILTER]: the results of a file's tests, as lines "FILE: NAME => pass|fail|skip WHY".
one() {
  local name=$1 file=$2 filter=${3:-} log runtime v2
  log=$work/$name/${file%.bats}
  case $name in rt) runtime=$RT ;; *) runtime=$(command -v "$name") ;; esac
  suite "$log.log" "$runtime" -- ${filter:+--filter "$filter"} "$suite/$file"
  results "$file" "$log.log" >"$log.results"
  # A file whose time was up has tests that did not come to an end.
  sed -nE 's/^@test "(.*)" \{$/\1/p' "$suite/$file" | grep -E "$filter" |
    sed "s/^/$file: /" | grep -vxFf <(sed 's/ => .*//' "$log.results") | sed 's/$/ => fail/' >>"$log.results"
  [ "$name" = rt ] || return 0
  v2=$(sed -n 's/^[^:]*: \(.*\) => skip test requires cgroups_v2$/\1/p' "$log.results" | one_of)
  [ -n "$v2" ] || return 0
  suite "$log.v2.log" "$runtime" "${guest_cgroups[@]}" -- --filter "$v2" "$suite/$file"
  sed -i '/ => skip test requires cgroups_v2$/d' "$log.results"
  results "$file" "$log.v2.log" >>"$log.results"
}

results() {
  sed -nE "s/^ok [0-9]+ (.*) # skip ?(.*)/$1: \1 => skip \2/p; t; s/^ok [0-9]+ (.*)/$1: \1 => pass/p; s/^not ok [0-9]+ (.*)/$1: \1 => fail/p" "$2"
}

# A regular expression for the names on standard input.
one_of() { sed -e 's/[][\.*^$+?(){}|]/\\&/g' -e 's/.*/(&)/' | paste -sd '|' | sed 's/..*/^(&)$/'; }

listed() { sed -n '/^#/d; / => /p' "$here/expected.txt"; }

# all_of RUNTIME: its results, of as many files at a time as there are processors.
all_of() {
  local file filter running=0
  rm -rf "${work:?}/$1"; mkdir -p "$work/$1"
  for file in $(cd "$suite" && ls -S -- *.bats); do
    chosen "$file" || continue
    filter=$(filter_of "$file")
    [ -n "$filter" ] || [ "$mode" != passes ] || continue
    [ $running -lt "$(nproc)" ] || { wait -n; running=$((running - 1)); }
    one "$1" "$file" "$filter" &
    running=$((running + 1))
  done
  wait
  sort "$work/$1"/*.results >"$work/$1.txt"
}

# Which tests of a file are to run: all, or those that are known to pass.
filter_of() { [ "$mode" != passes ] || listed | sed -n "s/^$1: \(.*\) => pass$/\1/p" | one_of; }

# Whether a file was asked for.
chosen() { [ ${#files[@]} -eq 0 ] || [[ " ${files[*]} " == *" $1 "* ]]; }

count() { grep -cE " => $2" "$work/$1.txt"; }
counts() { printf '%-5s %3d pass, %3d fail, %3d are skipped by the suite\n' "$1" "$(count "$1" pass)" "$(count "$1" fail)" "$(count "$1" skip)"; }

# What the list and rt's results do not agree in.
differences() {
  awk -F ' => ' -v mode="$mode" -v files="${files[*]:+ ${files[*]} }" '
    function chosen(test) { return files == "" || index(files, " " substr(test, 1, index(test, ": ") - 1) " ") }
    NR == FNR { expected[$1] = $2; next }
    { seen[$1] = 1 }
    !($1 in expected) { print $1 ": not in the list; it is " $2; next }
    $2 == "fail" && expected[$1] == "pass" { print $1 ": failed" }
    $2 == "pass" && expected[$1] != "pass" && expected[$1] !~ /^now and then: / { print $1 ": passed, and is listed with a reason why it cannot" }
    END { for (test in expected) if (!(test in seen) && chosen(test) && (mode != "passes" || expected[test] == "pass")) print test ": did not run" }
  ' <(listed) "$work/rt.txt"
}

# What bats says of rt's tests that failed and were to pass: "FILE: NAME: failed" on standard input.
words() {
  local line file
  while IFS= read -r line; do
    case $line in *": failed") line=${line%: failed} ;; *) continue ;; esac
    file=${line%%: *}
    awk -v test="${line#*: }" '
      /^(not )?ok / { name = $0; show = sub(/^not ok [0-9]+ /, "", name) && name == test }
      show' "$work/rt/${file%.bats}"{,.v2}.log 2>/dev/null
  done
}

mkdir -p "$work"
suite=$("$here/fetch.sh" "$work/suite") || exit 1
shift
files=()
case $mode in
  all) ;;
  passes) files=("$@") ;;
  show)
    rm -rf "$work/rt"; mkdir -p "$work/rt"
    for file; do one rt "$file"; cat "$work/rt/${file%.bats}"*.log; done
    exit ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

start=$SECONDS
all_of rt
[ "$mode" = passes ] || all_of runc
different=$(differences)
# A few files of which something failed run once more, one at a time: on a machine that others use, time itself can fail.
mapfile -t again < <(sed -n 's/: .*//p' <<<"$different" | sort -u)
if [ "$mode" = passes ] && [ ${#again[@]} -gt 0 ] && [ ${#again[@]} -le 3 ]; then
  echo "== once more: ${again[*]}"
  for file in "${again[@]}"; do one rt "$file" "$(filter_of "$file")"; done
  sort "$work/rt"/*.results >"$work/rt.txt"
  different=$(differences)
fi
passed=$(count rt pass) failed=0
if [ -n "$different" ]; then
  failed=$(wc -l <<<"$different")
  while IFS= read -r line; do echo "test conformance::$line ... FAILED"; done <<<"$different"
  words <<<"$different"
  echo "all that the suite says is in $work/rt/"
fi
echo "== runc's suite, $((SECONDS - start)) s"
counts rt
[ "$mode" = passes ] || counts runc
[ "$passed" -gt 0 ] || { echo "no test ran"; failed=$((failed + 1)); }
echo "test result: $([ "$failed" -eq 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; $(count rt skip) ignored; 0 measured"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
