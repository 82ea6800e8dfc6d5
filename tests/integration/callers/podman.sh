#!/bin/bash
# podman 4.3, as root, cgroupfs, its storage in a directory of its own.
. "$(dirname "$0")/lib.sh"

mkdir -p "$work/image"
lay_rootfs "$work/image"
podman() {
  command podman --root "$work/root" --runroot "$work/runroot" --tmpdir "$work/tmp" --storage-driver vfs \
    --network-config-dir "$work/networks" --cgroup-manager=cgroupfs --events-backend=file --log-level=error --runtime "$RT" "$@"
}
run() { podman run --rm --net=none "$@"; }

check podman::import sh -c "tar -C '$work/image' -c . >'$work/image.tar'"
podman import -q "$work/image.tar" bb:1 >/dev/null || exit 1

check podman::run says hi run bb:1 echo hi
check podman::exit_code exits 7 run bb:1 sh -c 'exit 7'
check podman::missing_program exits 127 run bb:1 /no/such/program
check podman::missing_program_in_path exits 127 run bb:1 nosuchprogram
check podman::not_executable exits 126 run bb:1 /etc/passwd
piped() { echo "a b c" | run -i bb:1 wc -w; }
check podman::stdin says 3 piped
check podman::user says 1000:1000 run --user 1000:1000 bb:1 sh -c 'echo $(id -u):$(id -g)'
check podman::environment_and_cwd says "v /tmp" run -e NAME=v -w /tmp bb:1 sh -c 'echo $NAME $(pwd)'
check podman::hostname says name run --hostname name bb:1 hostname
check podman::read_only says "ro tmp" run --read-only bb:1 sh -c 'touch /x 2>/dev/null || echo -n "ro "; touch /tmp/x && echo tmp'
mkdir "$work/volume"
check podman::volume says data run -v "$work/volume:/v" bb:1 sh -c 'echo data >/v/f; cat /v/f'
check podman::volume_on_the_host says data cat "$work/volume/f"
check podman::memory_limit says 67108864 run -m 64m bb:1 cat /sys/fs/cgroup/memory.max
check podman::pids_limit says 50 run --pids-limit 50 bb:1 cat /sys/fs/cgroup/pids.max
check podman::cpus says "2 150000 100000" run --cpus 1.5 bb:1 sh -c 'echo $(nproc) $(cat /sys/fs/cgroup/cpu.max)'

logged() { podman logs d 2>&1 | grep -q "$1"; }
detached() {
  podman run -d --name d --net=none bb:1 sh -c 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done' || return
  within 60 logged ready || return
  says running podman inspect -f '{{.State.Status}}' d
}
check podman::detached detached
check podman::exec says inside podman exec d echo inside
check podman::exec_exit_code exits 5 podman exec d sh -c 'exit 5'
check podman::pause podman pause d
check podman::unpause podman unpause d
check podman::stop podman stop -t 20 d
check podman::exit_code_of_stopped says 3 podman inspect -f '{{.State.ExitCode}}' d
check podman::restart podman start d
check podman::kill podman kill d
check podman::wait says 137 podman wait d
check podman::rm podman rm d
check podman::terminal says /dev/pts/0 on_terminal "command podman --root $work/root --runroot $work/runroot --tmpdir $work/tmp --storage-driver vfs --cgroup-manager=cgroupfs --events-backend=file --runtime $RT run --rm --net=none -t bb:1 tty"

# A pod is one machine: one kernel, one host name, one IPC namespace; each container ends for itself.
seen() { podman exec "$1" sh -c 'cat /proc/sys/kernel/random/boot_id; hostname; readlink /proc/self/ns/ipc'; }
pod() {
  podman pod create --name p --net none --infra-image bb:1 --infra-command 'sleep 1000' >/dev/null && podman pod start p || return
  for name in one two; do
    podman run -d --pod p --name $name bb:1 sh -c 'trap "exit 3" TERM; while :; do sleep 0.1; done' || return
  done
  [ "$(seen one)" = "$(seen two)" ] && [ "$(seen one | wc -l)" = 3 ]
}
check podman::pod_is_one_machine pod
check podman::pod_member_stops podman stop -t 20 one
check podman::pod_others_go_on says "3 exited
0 running" podman inspect -f '{{.State.ExitCode}} {{.State.Status}}' one two
check podman::pod_stops podman pod stop -t 20 p
check podman::pod_member_exit_code says 3 podman inspect -f '{{.State.ExitCode}}' two

# With a network of podman's, its members share interfaces and loopback.
networked() {
  podman network create --subnet 10.87.91.0/24 net >/dev/null || return
  podman pod create --name n --network net --infra-image bb:1 --infra-command 'sleep 1000' >/dev/null && podman pod start n || return
  podman run -d --pod n --name server --cap-add NET_RAW bb:1 sh -c 'while :; do echo over loopback | nc -l -p 7000; done' || return
  within 60 podman exec server sh -c 'netstat -ltn | grep -q :7000' || return
  says "over loopback" podman run --rm --pod n bb:1 nc 127.0.0.1 7000
}
check podman::pod_with_a_network networked
check podman::pod_reaches_its_bridge podman exec server ping -c 1 -W 20 10.87.91.1
podman rm -fa >/dev/null 2>&1
podman pod rm -fa >/dev/null 2>&1
bridge=$(ip -o addr show to 10.87.91.1 | awk '{ print $2 }')
podman network rm -f net >/dev/null 2>&1
[ -z "$bridge" ] || ip link del "$bridge" 2>/dev/null
check podman::nothing_is_left no_processes_of "$work"
summary
