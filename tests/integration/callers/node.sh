#!/bin/bash
# The image of deploy/kubernetes, built by podman, lays rt onto a node and takes it off again. runc runs it, as it does on nodes.
. "$(dirname "$0")/lib.sh"

podman() {
  command podman --root "$work/root" --runroot "$work/runroot" --tmpdir "$work/tmp" --storage-driver vfs \
    --cgroup-manager=cgroupfs --events-backend=file --log-level=error --runtime "$(command -v runc)" "$@"
}
# podman's own limits are more than this host may give.
node() { podman run --rm --privileged --net=none --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 -v "$work/node:/host" "$image" "$@"; }
content() { (cd "$work/node" && find . | sort && find . -type f | sort | xargs cat); }

image=registry.example/rt:test
mkdir -p "$work/node/etc/containerd"
echo 'version = 2' >"$work/node/etc/containerd/config.toml"
before=$(content)

build() { BUILDER="podman --root $work/root --runroot $work/runroot --tmpdir $work/tmp --storage-driver vfs" deploy/kubernetes/image.sh "$image" "$RT"; }
check node::image_is_built says "$image" build
check node::install node install /host containerd
check node::file_is_laid cmp "$RT" "$work/node/opt/rt/bin/rt"
check node::engine_is_told grep -q 'runtime_type = "io.containerd.rt.v2"' "$work/node/etc/containerd/config.toml"
check node::shim_is_linked says /opt/rt/bin/rt readlink "$work/node/opt/containerd/bin/containerd-shim-rt-v2"
check node::twice_is_once says "nothing to do: it is so already" node install /host containerd
check node::remove node remove /host containerd
rmdir -p "$work/node/opt/containerd/bin" 2>/dev/null
rmdir "$work/node/var/lib" "$work/node/var" 2>/dev/null
check node::nothing_is_left says "$before" content
stays() { podman run --rm --net=none --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --entrypoint /bin/sh "$image" -c "$1"; }
check node::pod_has_what_the_daemonset_calls says nsenter stays 'trap "exit 0" TERM; sleep 0 & wait; basename $(command -v nsenter)'
check node::image_goes_to_a_file sh -c "command podman --root '$work/root' --runroot '$work/runroot' --tmpdir '$work/tmp' --storage-driver vfs save -q -o '$work/image.tar' $image && test -s '$work/image.tar'"
summary
