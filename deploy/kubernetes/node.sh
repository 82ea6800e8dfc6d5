#!/bin/sh
# Lays rt onto a node and takes it off again: node.sh install|remove ROOT ENGINE [RT]
#
#   ROOT     the node's root directory; in the DaemonSet's pod it is mounted at /host
#   ENGINE   crio or containerd
#   RT       the one-file rt (make dist) to lay; default: the one beside this script
#
# On the node rt is /opt/rt/bin/rt, to which containerd's link to the shim leads; the engine knows it as the runtime "rt", which runtimeclass.yaml names. Doing either twice
# is doing it once. The engine is restarted only when its configuration changed, and only on a node whose systemd runs.
# The script needs nothing but POSIX sh, cp, mv, rm, rmdir, chmod, mkdir, and on a node nsenter.
set -eu

die() { echo "rt: $*" >&2; exit 1; }
[ $# -ge 3 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }
verb=$1 root=${2%/} engine=$3 rt=${4:-$(dirname "$0")/rt}
bin=$root/opt/rt/bin
case $engine in crio | containerd) ;; *) die "the engine is $engine, but has to be crio or containerd" ;; esac
[ -d "$root/etc" ] || die "$root is no root directory of a node: it has no /etc"

# wire FLAGS...: changes the engine's configuration, and lets it know.
wire() {
  said=$("$rt" install "$engine" --into "$root/" --binary /opt/rt/bin/rt "$@") || exit 1
  echo "$said"
  case $said in "nothing to do"*) return ;; esac
  [ -d "$root/run/systemd/system" ] || { echo "rt: no systemd runs on this node: restart $engine yourself"; return; }
  nsenter --target 1 --mount --uts --ipc --net --pid -- systemctl restart "$engine"
}

case $verb in
  install)
    [ -x "$rt" ] || die "$rt is no executable: make dist makes it"
    mkdir -p "$bin"
    # Sandboxes run the old file: the new one takes its name.
    cp "$rt" "$bin/.rt-new"
    chmod 0755 "$bin/.rt-new"
    mv -f "$bin/.rt-new" "$bin/rt"
    wire
    ;;
  remove)
    [ -x "$rt" ] || rt=$bin/rt
    [ -x "$rt" ] || die "there is no rt to undo the configuration with"
    wire --undo
    # The engine still has to delete what runs, by this file: CRI-O's containers, and containerd's below the name of their namespace,
    # also those that runc's shim started for an older rt.
    for state in "$root"/run/rt/*/state.json "$root"/run/rt/*/*/state.json "$root"/run/containerd/rt/*/*/state.json; do
      [ -e "$state" ] || continue
      id=${state%/state.json}
      echo "rt: $root/opt/rt stays, since containers such as ${id##*/} still run; remove it later"
      exit 0
    done
    rm -f "$bin/rt"
    rmdir "$bin" "$root/opt/rt" 2>/dev/null || true
    rm -rf "$root/var/lib/rt/guest"
    rmdir "$root/var/lib/rt" 2>/dev/null || true
    ;;
  *) die "$verb is neither install nor remove" ;;
esac
