# A containerd in $work, for ctr and what else calls it by its socket. Sourced after lib.sh; `namespace` is the script's own.

namespace=${namespace-default} socket=$work/containerd.sock daemon=
runtime=io.containerd.rt.v2 root=$work/image
mkdir -p "$root" "$work/bin"
lay_rootfs "$root"
ln -s "$RT" "$work/bin/containerd-shim-rt-v2"
# A script's words for ctr, where a function cannot be called.
ctr_="ctr -a $socket -n $namespace"
ctr() { command $ctr_ "$@"; }

# containerd_config: $work/config.toml, for a containerd without CRI in $work; standard input is added.
containerd_config() {
  {
    cat <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$socket"
TOML
    cat
  } >"$work/config.toml"
}
launch_containerd() {
  PATH=$work/bin:$PATH containerd -c "$work/config.toml" >>"$work/containerd.log" 2>&1 &
  daemon=$!
}
start_containerd() { launch_containerd; within 60 ctr version || { tail "$work/containerd.log"; return 1; }; }
# end_containerd SIGNAL
end_containerd() { kill -"$1" "$daemon"; wait "$daemon" 2>/dev/null; daemon=; }
# With what of failed checks may run.
end_all() {
  local id
  [ -z "$daemon" ] || end_containerd TERM
  for id in $("$RT" --root "/run/containerd/rt/$namespace" list -q 2>/dev/null); do
    "$RT" --root "/run/containerd/rt/$namespace" delete --force "$id"
  done
  kill -KILL $(pgrep -f "containerd-shim-(rt|kata)-v2 -namespace $namespace ") 2>/dev/null
  rmdir "/run/containerd/rt/$namespace" 2>/dev/null
  # The parent of its containers' cgroups, which stays for the next one, as with runc; there is none.
  [ "$namespace" = default ] || find /sys/fs/cgroup -depth -type d -name "$namespace" -exec rmdir {} + 2>/dev/null
}
trap end_all EXIT

# Of rt's own shims of that namespace.
in_state() { grep -q "^$1 .*$2" <<<"$(ctr task ls)"; }
shim_of() { pgrep -f "containerd-shim-rt-v2 -namespace $namespace -id $1 "; }
gone() { ! shim_of "$1"; }
no_state() { [ -z "$("$RT" --root "/run/containerd/rt/$namespace" list -q)" ]; }
no_shim() { ! pgrep -af "containerd-shim-(rt|kata)-v2 -namespace $namespace "; }
