#!/bin/bash
# docker 20.10: a daemon of its own, without iptables, with rt as its default runtime.
. "$(dirname "$0")/lib.sh"

mkdir -p "$work/image"
lay_rootfs "$work/image"
# Bridges of its own, out of the way of the host's. nsenter, since ip(8) would hide the cgroups.
net=rtnet-docker-$$
ip netns add "$net" && ip -n "$net" link set lo up || exit 1
nsenter --net="/run/netns/$net" dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/docker.pid" -H "unix://$work/docker.sock" \
  --iptables=false --ip6tables=false --bridge=none --storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs \
  --add-runtime "rt=$RT" --default-runtime rt >"$work/dockerd.log" 2>&1 &
daemon=$!
trap 'kill $daemon 2>/dev/null; wait $daemon 2>/dev/null; ip netns del "$net"' EXIT
docker() { command docker -H "unix://$work/docker.sock" "$@"; }
within 60 docker version || { tail "$work/dockerd.log"; exit 1; }
tar -C "$work/image" -c . | docker import - bb:1 >/dev/null || exit 1
run() { docker run --rm --network none "$@"; }

check docker::run says hi run bb:1 echo hi
check docker::exit_code exits 7 run bb:1 sh -c 'exit 7'
check docker::missing_program exits 127 run bb:1 /no/such/program
check docker::missing_program_in_path exits 127 run bb:1 nosuchprogram
check docker::not_executable exits 126 run bb:1 /etc/passwd
check docker::user says 1000 run --user 1000 bb:1 id -u
check docker::hostname says name run --hostname name bb:1 hostname
check docker::volume says data run -v "$work:/v" bb:1 sh -c 'echo data >/v/f; cat /v/f'
check docker::memory_limit says 134217728 run -m 128m bb:1 cat /sys/fs/cgroup/memory.max
check docker::cpus says 2 run --cpus 1.5 bb:1 nproc
check docker::read_only exits 1 run --read-only bb:1 touch /x
check docker::terminal says /dev/pts/0 on_terminal "docker -H unix://$work/docker.sock run --rm -t --network none bb:1 tty"

detached() { docker run -d --name dd --network none bb:1 sh -c 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done'; }
check docker::detached detached
check docker::logs within 30 sh -c "docker -H unix://$work/docker.sock logs dd | grep -q ready"
check docker::exec says inside docker exec dd echo inside
check docker::exec_exit_code exits 5 docker exec dd sh -c 'exit 5'
check docker::pause docker pause dd
check docker::unpause docker unpause dd
check docker::update docker update --memory 200m --memory-swap 200m dd
check docker::stop docker stop -t 20 dd
check docker::exit_code_of_stopped says 3 docker inspect -f '{{.State.ExitCode}}' dd
check docker::restart docker start dd
check docker::kill docker kill dd
check docker::rm docker rm -f dd
docker network create --subnet 10.77.0.0/24 --gateway 10.77.0.1 one >/dev/null
docker network create --subnet 10.78.0.0/24 --gateway 10.78.0.1 two >/dev/null
check docker::bridge docker run --rm --network one bb:1 ping -c 2 -W 5 10.77.0.1
# By docker's own resolver on 127.0.0.11, which takes iptables with address translation in the container's namespace.
named() { docker run --rm --network one "$@" bb:1 nslookup web; }
named_by_rt() { named | grep -q 'Address.* 10.77.0.20$'; }
known_to_runc() { docker run -d --name web --network one --ip 10.77.0.20 bb:1 sleep 1000 && within 60 named --runtime runc; }
if known_to_runc >"$work/output" 2>&1; then
  check docker::names_of_other_containers named_by_rt
  check docker::names_with_exec within 30 sh -c "docker -H unix://$work/docker.sock exec web nslookup web | grep -q 10.77.0.20"
else
  echo "skipped: docker::names_of_other_containers: docker's resolver does not work with runc here: $(tail -1 "$work/output")"
fi
docker rm -f web >/dev/null 2>&1
published() {
  docker run -d --name served --network one -p 127.0.0.1:8099:80 bb:1 sh -c 'echo page >/tmp/index.html; exec httpd -f -h /tmp' &&
    within 30 says page ip netns exec "$net" busybox wget -q -O - http://127.0.0.1:8099/
}
check docker::published_port published
docker rm -f served >/dev/null 2>&1
connected() {
  docker run -d --name net --network one --ip 10.77.0.9 bb:1 sleep 1000 && docker network connect --ip 10.78.0.9 two net || return
  within 30 ip netns exec "$net" busybox ping -c 1 -W 1 10.77.0.9 && within 30 ip netns exec "$net" busybox ping -c 1 -W 1 10.78.0.9
}
check docker::network_connect connected
check docker::network_rm docker rm -f net
check docker::nothing_is_left no_processes_of "$work"
kill $daemon; wait $daemon 2>/dev/null
summary
