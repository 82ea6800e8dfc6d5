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

# CRI-O's pod, on the bundles that it wrote and in the order of its calls (fixtures): a sandbox s, containers a and b, in a network namespace.
net=rtconmon$$
# member WHO SCRIPT: its bundle.
member() {
  bundle=$work/pod/$1
  rm -rf "$bundle"; mkdir -p "$bundle"
  python3 - "$bundle" "$work/bundle/rootfs" "$net" "$@" "$(cat "$work/s$$.pid" 2>/dev/null)" <<'PY'
import json, os, sys
bundle, rootfs, net, who, script, sandbox = sys.argv[1:]
config = json.load(open(f"tests/integration/fixtures/crio-1.13-{'sandbox' if who == 's' else 'container'}.json"))
config["root"]["path"] = rootfs
config["process"]["args"] = ["/bin/sh", "-c", script]
number = net.removeprefix("rtconmon")
config["linux"]["cgroupsPath"] = f"/rt-callers/{who}{number}"
config["annotations"].update({"io.kubernetes.cri-o.ContainerID": who + number, "io.kubernetes.cri-o.SandboxID": "s" + number})
for namespace in config["linux"]["namespaces"]:
    if namespace["type"] == "network":
        namespace["path"] = f"/run/netns/{net}"
    elif "path" in namespace:
        namespace["path"] = f"/proc/{sandbox}/ns/{namespace['type']}"
for index, mount in enumerate(config["mounts"]):
    if mount["source"].startswith("/"):
        mount["source"] = source = f"{bundle}/source-{index}"
        os.mkdir(source) if mount["destination"] == "/dev/shm" else open(source, "w").close()
json.dump(config, open(f"{bundle}/config.json", "w"))
PY
}
up() {
  local who loop='trap "exit 3" TERM; while :; do sleep 0.1; done'
  rm -f "$work/exits"/[sab]$$
  member s 'exec sleep 1000' && monitor s$$ && within 60 created s$$ && rt start s$$ || return
  for who in a b; do member $who "$loop" && monitor $who$$ && within 60 created $who$$ || return; done
  rt start a$$ && rt start b$$
}
exit_is() { within 60 test -s "$work/exits/$1$$" && says "$2" cat "$work/exits/$1$$"; }
inside() { rt exec "$1$$" sh -c "$2"; }
pod() {
  up || return
  inside a 'httpd -p 127.0.0.1:80 -h /etc' && says root:x:0: inside b 'wget -q -O - http://127.0.0.1/group' &&
    within 30 busybox ping -c 1 -W 1 10.215.7.2 || return
  rt kill b$$ TERM && exit_is b 3 && says alive inside a 'echo alive' && rt kill a$$ TERM && exit_is a 3 &&
    rt kill s$$ TERM && rt kill s$$ KILL && exit_is s 137 && down
}
down() { local who; for who in a b s; do rt delete --force $who$$ || return; done; }
# Whose process is the machine's keeper cannot say how it ended; the others were killed with it.
pods_machine_is_killed() { up && kill -KILL "$(vmm_of s$$)" && exit_is s 255 && exit_is a 137 && exit_is b 137 && within 10 no_processes_of s$$ && down; }
end_network() { ip link del "rtc$$" 2>/dev/null; ip netns del $net; rmdir /sys/fs/cgroup/*/rt-callers /sys/fs/cgroup/rt-callers 2>/dev/null; }
mkdir -p "$work/bundle/rootfs/run"; touch "$work/bundle/rootfs/etc"/{hosts,hostname,resolv.conf}
ip netns add $net && trap end_network EXIT
ip link add "rtc$$" type veth peer name eth0 netns $net && ip addr add 10.215.7.1/30 dev "rtc$$" && ip link set "rtc$$" up &&
  ip -n $net addr add 10.215.7.2/30 dev eth0 && ip -n $net link set eth0 up && ip -n $net link set lo up

check conmon::output_and_exit_code output_and_exit_code
check conmon::conmon_ends_with_the_container conmon_ends_with_the_container
check conmon::killed killed
check conmon::terminal terminal
check conmon::failure_is_told failure_is_told
check conmon::execs execs
check conmon::crio_pod pod
check conmon::machine_of_a_crio_pod_is_killed pods_machine_is_killed
for id in s$$ a$$ b$$ plain ends killed tty bad base; do rt delete --force "$id"; done
check conmon::nothing_is_left within 10 sh -c "[ -z \"\$(ls -A '$work/run')\" ]"
summary
