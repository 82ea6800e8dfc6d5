# For the scripts beside it: a workspace, an image of busybox, and checks that count. Sourced.
#
# Each script drives one program that calls rt where it would call runc, and prints libtest's closing line, so that
# all.sh can add it up. Whatever a script starts it ends, by process ID.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
RT=${RT_BIN:-$PWD/target/release/rt}
[ -x "$RT" ] || { echo "$RT: there is no binary to test; run \`make build\`" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "the callers want root" >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/rt-callers-XXXXXX")
passed=0 failed=0
exec </dev/null

# check NAME COMMAND…: it succeeds, within two minutes. In a process group of its own, which ends with it.
check() {
  local name=$1 group status deadline=$((SECONDS + 120 * ${RT_TEST_PATIENCE:-1})); shift
  set -m
  ("$@") >"$work/output" 2>&1 &
  group=$!
  set +m
  while kill -0 "$group" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.05; done
  if kill -0 "$group" 2>/dev/null; then echo "hung" >>"$work/output"; kill -KILL -- "-$group"; fi
  wait "$group" 2>/dev/null; status=$?
  if [ $status -eq 0 ]; then
    passed=$((passed + 1)); echo "test $name ... ok"
  else
    failed=$((failed + 1)); echo "test $name ... FAILED ($status)"; sed 's/^/    /' "$work/output" | tail -20
  fi
}

# check_here NAME COMMAND…: likewise, in this shell, whose variables it may change, and without a limit of time.
check_here() {
  local name=$1; shift
  if "$@" >"$work/output" 2>&1; then passed=$((passed + 1)); echo "test $name ... ok"
  else failed=$((failed + 1)); echo "test $name ... FAILED"; tail -20 "$work/output"; fi
}

# says EXPECTED COMMAND…: its output is that, to the byte but for the last newline.
says() {
  local expected=$1 output status; shift
  output=$("$@" 2>&1); status=$?
  [ "$output" = "$expected" ] || { printf 'said %q (exit %s), not %q\n' "$output" "$status" "$expected"; return 1; }
}

# on_terminal COMMAND: with a terminal on which nobody types; at the end of its own input script(1) would type an end of file.
on_terminal() {
  [ -p "$work/nobody" ] || mkfifo "$work/nobody"
  script -qec "$1" /dev/null <>"$work/nobody" | tr -d '\r'
}

# exits CODE COMMAND…
exits() {
  local expected=$1 status; shift
  "$@"; status=$?
  [ "$status" -eq "$expected" ] || { echo "exit code $status, not $expected"; return 1; }
}

# within SECONDS COMMAND…: it succeeds before long.
within() {
  local deadline=$((SECONDS + $1 * ${RT_TEST_PATIENCE:-1})); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { echo "not in time: $*"; "$@"; return 1; }
    sleep 0.1
  done
}

# A root file system of busybox in this directory.
lay_rootfs() {
  mkdir -p "$1"/{bin,dev,etc,proc,root,run,sys,tmp,v}
  cp /bin/busybox "$1/bin/busybox"
  local applet
  for applet in $(/bin/busybox --list); do [ -e "$1/bin/$applet" ] || ln -s busybox "$1/bin/$applet"; done
  echo root:x:0:0:root:/root:/bin/sh >"$1/etc/passwd"
  echo user:x:1000:1000::/:/bin/sh >>"$1/etc/passwd"
  echo root:x:0: >"$1/etc/group"
}

# Processes of rt that carry this in their arguments, or nothing.
processes_of() { pgrep -af "rt (monitor|fsd|vsockd|vmm) .*$1|rt-$1"; }

vmm_of() { pgrep -f "rt vmm .*$1|-name rt-$1 "; }

no_processes_of() { ! processes_of "$1"; }

# At the end of each script.
summary() {
  rm -rf --one-file-system "$work"
  echo "test result: $([ $failed -eq 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; 0 ignored; 0 measured"
  [ $((passed + failed)) -gt 0 ] && [ $failed -eq 0 ]
}

