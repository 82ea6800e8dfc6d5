#!/bin/bash
# containerd 1.6 is killed in the middle of its calls of rt's own shim, and started again: what was asked has happened, and the
# container can be had away.
. "$(dirname "$0")/lib.sh"
namespace=rt-crash-$$
. tests/integration/callers/ctr.sh

containerd_config </dev/null
# A shim that is stopped as soon as it has started, before containerd calls it.
cat >"$work/bin/containerd-shim-held-v2" <<'SH'
#!/bin/bash
containerd-shim-rt-v2 "$@" || exit
case " $* " in *' start '*) kill -STOP $(pgrep -f "containerd-shim-rt-v2 .*$(sed 's/.*\(-id [^ ]*\).*/\1/' <<<"$*") ") ;; esac
SH
chmod +x "$work/bin/containerd-shim-held-v2"
start_containerd || exit 1
tasks() { CONTAINERD_NAMESPACE=$namespace tests/integration/callers/tasks.py "$socket" "$@"; }
any() { printf '{"type_url": "types.containerd.io/opencontainers/runtime-spec/1/%s", "value": "%s"}' "$1" "$(base64 -w 0 <<<"$2")"; }

# asked ID: a request lies in the shim's socket, or with a connection that it has not taken yet; answered ID: a reply lies in containerd's.
# Whose it is to read is stopped.
sockets_of() { ss -xanH src "$(sed 's|^unix://||' "$work/state/io.containerd.runtime.v2.task/$namespace/$1/address")"; }
taken() { ! asked "$1"; }
asked() { sockets_of "$1" | awk '$3 > 0 { found = 1 } END { exit !found }'; }
answered() {
  local peers; peers=$(sockets_of "$1" | awk '$2 == "ESTAB" { print $NF }')
  ss -xanH | awk -v list="$peers" 'BEGIN { split(list, peers) ; for (i in peers) wanted[peers[i]] = 1 } $3 > 0 && $6 in wanted { found = 1 } END { exit !found }'
}
# stop PID: and all its threads have stopped, of which one could go on for a while.
stop() { kill -STOP "$1" && within 10 has_stopped "$1"; }
has_stopped() { ! grep -qs '^State:[[:space:]][^T]' /proc/"$1"/task/*/status; }
call() {
  case $2 in Metrics) tasks Metrics "filters=[\"id==$1\"]" ;; *) tasks "$2" container_id="$1" "${@:3}" ;; esac
}
# [after=CALLS] [machine=PID] cut ID METHOD [FIELD=VALUE…]: containerd is killed while the shim has that request of a client's before it,
# unread; or the one that containerd makes for the same client after so many others; or with it in a machine that is stopped.
cut() {
  local id=$1 shim client status
  shim=$(shim_of "$id") && stop "$shim" || return
  call "$@" >"$work/reply" 2>&1 & client=$!
  hold "$id" "$shim" && kill -0 $client; status=$?
  end_containerd KILL
  kill -CONT "$shim" ${machine-}
  wait $client && status=1
  [ $status = 0 ] || echo "the client was told: $(cat "$work/reply")"
  start_containerd && return $status
}
hold() {
  local turn
  within 30 asked "$1" || return
  for ((turn = 0; turn < ${after-0}; turn++)); do
    stop "$daemon" && kill -CONT "$2" && within 30 answered "$1" && stop "$2" && kill -CONT "$daemon" && within 30 asked "$1" || return
  done
  # The shim reads it, and asks the machine.
  [ -z "${machine-}" ] || { stop "$machine" && kill -CONT "$2" && within 30 taken "$1" && sleep 0.5; }
}
# had_away ID: whatever it is by now.
had_away() {
  tasks Resume container_id="$1" 2>/dev/null
  ctr task delete -f "$1" 2>/dev/null; ctr container rm "$1"
  within 30 gone "$1" && within 10 no_state && within 10 no_processes_of "$1"
}
# `exec` may say which exec of its is meant.
status_of() { call "$1" Get ${exec-} | grep "\"status\": $2"; }
# cut_to STATUS ID METHOD…: what comes of it. 1 is created, 2 runs, 3 has stopped, 4 is paused. A request that was not read may be lost
# with its connection, but not half done: the same call does it then.
cut_to() {
  cut "${@:2}" || return
  [ -n "${machine-}" ] || status_of "$2" "$1" || call "${@:2}"
  within 60 status_of "$2" "$1"
}
# [runtime=NAME] [flags=FLAGS] ready ID COMMAND…
ready() { ctr container create --runtime "$runtime" ${flags-} --rootfs "$root" "$@"; }

p=p$$ q=q$$ eof=eof$$ m=m$$
in_create() {
  local client status=0
  runtime=io.containerd.held.v2 ready $p sleep 1000 || return
  tasks Create container_id=$p >"$work/reply" 2>&1 & client=$!
  within 60 shim_of $p && within 30 asked $p && sleep 0.5 && kill -0 $client || status=1
  end_containerd KILL
  kill -CONT "$(shim_of $p)"
  wait $client && { echo answered; status=1; }
  start_containerd && had_away $p && says hi ctr run --rm --runtime $runtime --rootfs "$root" $p echo hi && return $status
}
check_here crash::create in_create

# In a file, since ctr would take its flags for its own.
printf '#!/bin/sh\ntrap "exit 3" TERM; while :; do sleep 0.1; done\n' >"$root/bin/loop"
chmod +x "$root/bin/loop"
created() { flags='-t --mount type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro' ready $q loop && tasks Create container_id=$q terminal=true; }
check crash::container created
check_here crash::start cut_to 2 $q Start
check_here crash::state cut_to 2 $q Get
check_here crash::wait cut_to 2 $q Wait
inside() { ctr task exec --exec-id "i$RANDOM" $q "$@"; }
in_update() {
  local request; request=($q Update "resources=$(any LinuxResources "{\"memory\": {\"limit\": $1}}")")
  cut "${request[@]}" || return
  [ -n "$machine" ] || call "${request[@]}"
  within 10 says "$1" inside cat /sys/fs/cgroup/memory.max
}
in_resize() {
  cut $q ResizePty width=99 height="$1" || return
  [ -n "$machine" ] || call $q ResizePty width=99 height="$1"
  within 10 says "$1 99" inside stty -F /dev/console size
}
process='{"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}'
# Exec and DeleteProcess never leave the shim.
in_exec() { machine= exec=exec_id=x cut_to 1 $q Exec exec_id=x "spec=$(any Process "$process")"; }
in_exec_delete() {
  machine= after=1 cut $q DeleteProcess exec_id=x || return
  call $q DeleteProcess exec_id=x
  ! call $q Get exec_id=x
}
number=30
for place in '' _in_the_guest; do
  machine=; [ -z "$place" ] || machine=$(vmm_of $q)
  number=$((number + 1))
  check_here crash::pids$place cut_to 2 $q ListPids
  check_here crash::stats$place cut_to 2 $q Metrics
  check_here crash::pause$place cut_to 4 $q Pause
  check_here crash::resume$place cut_to 2 $q Resume
  check_here crash::update$place in_update $((number << 20))
  check_here crash::resize_pty$place in_resize $number
  # Of an exec containerd asks the state before each call but Exec.
  check_here crash::exec$place in_exec
  after=1 exec=exec_id=x check_here crash::exec_start$place cut_to 2 $q Start exec_id=x
  after=1 exec=exec_id=x check_here crash::exec_kill$place cut_to 3 $q Kill exec_id=x signal=9
  check_here crash::exec_delete$place in_exec_delete
done
# Connect is what containerd calls first when it comes up: it has no client yet, nor serves one before it is answered.
in_connect() {
  local shim status; shim=$(shim_of $q)
  end_containerd KILL
  stop "$shim"
  launch_containerd
  within 30 asked $q && ! ctr version && kill -0 "$daemon"; status=$?
  end_containerd KILL
  kill -CONT "$shim"
  start_containerd && in_state $q RUNNING && says alive inside echo alive && return $status
}
check_here crash::connect in_connect
machine=
in_kill() { cut_to 3 $q Kill signal=15 && call $q Get | grep '"exit_status": 3'; }
check_here crash::kill in_kill
in_delete() { cut $q Delete && had_away $q; }
check_here crash::delete in_delete

# The shim holds an input's other end, until it is told to close it.
in_close_io() {
  mkfifo "$work/input" && ready $eof cat && tasks Create container_id=$eof stdin="$work/input" && tasks Start container_id=$eof &&
    cut_to 3 $eof CloseIO stdin=true
}
check_here crash::close_io in_close_io
# containerd calls it after Delete, for the same client.
in_shutdown() { after=1 cut $eof Delete && had_away $eof; }
check_here crash::shutdown in_shutdown

# While a container is made, at any moment: the next one finds it, or removes what there is of it.
half_made() {
  ctr run -d --runtime $runtime --rootfs "$root" $m sleep 1000 >/dev/null 2>&1 & local client=$!
  sleep "$1"
  end_containerd KILL; wait $client
  start_containerd && had_away $m
}
for moment in 0.3 1 2; do
  check_here crash::after_$moment half_made $moment
done

check crash::no_shim_is_left within 10 no_shim
check crash::nothing_is_left no_processes_of "$work"
end_containerd TERM
summary
