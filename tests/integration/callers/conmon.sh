#!/bin/bash
# conmon 2.1: what CRI-O and podman start a container through.
. "$(dirname "$0")/lib.sh"

bundle=$work/bundle
mkdir -p "$bundle" "$work/exits" "$work/sockets"
lay_rootfs "$bundle/rootfs"

# lay TERMINAL SCRIPT: the bundle's process.
lay() {
  rm -f "$bundle/config.json"
  "$RT" spec -b "$bundle"
  python3 - "$bundle/config.json" "$@" <<'PY'
import json, sys
path, terminal, script = sys.argv[1:]
config = json.load(open(path))
config["process"].update(terminal=terminal == "true", args=["/bin/sh", "-c", script])
json.dump(config, open(path, "w"))
PY
}

# conmon ID FLAGS…: as CRI-O calls it.
monitor() {
  local id=$1; shift
  conmon -c "$id" -u "$id" -n "$id" -r "$RT" -b "$bundle" -p "$work/$id.pid" --conmon-pidfile "$work/$id.conmon" \
    -l "$work/$id.log" --exit-dir "$work/exits" --socket-dir-path "$work/sockets" \
    --runtime-arg "--root=$work/run" --log-level error "$@"
}
rt() { "$RT" --root="$work/run" "$@"; }
created() { rt state "$1" | grep -q '"status": "created"'; }
stopped() { rt state "$1" | grep -q '"status": "stopped"'; }

output_and_exit_code() {
  lay false 'echo out; echo err >&2; exit 7'
  monitor plain && within 60 created plain || return
  [ "$(cat "$work/plain.pid")" = "$(rt state plain | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')" ] || return
  says "" rt start plain && within 60 test -s "$work/exits/plain" || return
  [ "$(cat "$work/exits/plain")" = 7 ] || { echo "exit file: $(cat "$work/exits/plain")"; return 1; }
  grep -q 'stdout F out$' "$work/plain.log" && grep -q 'stderr F err$' "$work/plain.log" || { cat "$work/plain.log"; return 1; }
  rt delete plain
}

# conmon sees the end of the streams, and the PID is its own to wait for.
conmon_ends_with_the_container() {
  lay false 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done'
  monitor ends && within 60 created ends && rt start ends || return
  within 60 grep -q ready "$work/ends.log" && rt kill ends TERM || return
  within 60 test -s "$work/exits/ends" && [ "$(cat "$work/exits/ends")" = 3 ] || return
  within 10 sh -c "! kill -0 $(cat "$work/ends.conmon")" && rt delete ends
}

killed() {
  lay false 'sleep 1000'
  monitor killed && within 60 created killed && rt start killed && rt kill killed KILL || return
  within 60 test -s "$work/exits/killed" && [ "$(cat "$work/exits/killed")" = 137 ] && rt delete -f killed
}

terminal() {
  lay true 'tty; stty size; exit 4'
  monitor tty -t && within 60 created tty && rt start tty || return
  within 60 test -s "$work/exits/tty" && [ "$(cat "$work/exits/tty")" = 4 ] || return
  grep -q /dev/pts/0 "$work/tty.log" || { cat "$work/tty.log"; return 1; }
  rt delete tty
}

# What is told of a failure comes over conmon's sync pipe.
failure_is_told() {
  lay false true
  sed -i 's|"/bin/sh"|"/no/such/program"|' "$bundle/config.json"
  _OCI_SYNCPIPE=3 monitor bad 3>"$work/sync" 2>&1
  within 30 grep -q 'no such file or directory' "$work/sync" || { cat "$work/sync"; return 1; }
  ! rt state bad 2>/dev/null
}

execs() {
  lay false 'sleep 1000'
  monitor base && within 60 created base && rt start base || return
  echo '{"args":["/bin/sh","-c","echo inside; exit 5"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}' >"$work/process.json"
  conmon -c base -u exec1 -r "$RT" -b "$bundle" -p "$work/exec1.pid" -l "$work/exec1.log" --exit-dir "$work/exits" \
    --socket-dir-path "$work/sockets" --runtime-arg "--root=$work/run" -e --exec-process-spec "$work/process.json" --log-level error
  within 60 test -s "$work/exits/base" || { cat "$work/exec1.log"; return 1; }
  [ "$(cat "$work/exits/base")" = 5 ] && grep -q inside "$work/exec1.log" && rm "$work/exits/base"
}

check conmon::output_and_exit_code output_and_exit_code
check conmon::conmon_ends_with_the_container conmon_ends_with_the_container
check conmon::killed killed
check conmon::terminal terminal
check conmon::failure_is_told failure_is_told
check conmon::execs execs
for id in plain ends killed tty bad base; do rt delete --force "$id"; done
check conmon::nothing_is_left within 10 sh -c "[ -z \"\$(ls -A '$work/run')\" ]"
summary
