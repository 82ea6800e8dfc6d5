#!/bin/bash
# Makes a bundle from busybox-static: bundle.sh DIR SCRIPT — its process is /bin/sh -c SCRIPT.
set -euo pipefail
[ $# -eq 2 ] || { sed -n 2p "$0" >&2; exit 2; }
dir=$1 script=$2
busybox=$(command -v busybox) || { echo "bundle: busybox is not here; run: apt-get install --no-install-recommends busybox-static" >&2; exit 1; }
mkdir -p "$dir"/rootfs/{bin,dev,etc,proc,root,sys,tmp}
cp -f "$busybox" "$dir/rootfs/bin/busybox"
for applet in $("$busybox" --list); do
  [ "$applet" = busybox ] || ln -sfn busybox "$dir/rootfs/bin/$applet"
done
script=${script//\\/\\\\} script=${script//\"/\\\"}
cat >"$dir/config.json" <<JSON
{
  "ociVersion": "1.0.2",
  "root": {"path": "rootfs"},
  "hostname": "busybox",
  "process": {
    "user": {"uid": 0, "gid": 0},
    "args": ["/bin/sh", "-c", "$script"],
    "env": ["PATH=/bin", "HOME=/root"],
    "cwd": "/",
    "noNewPrivileges": true
  },
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
  ],
  "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}
}
JSON
