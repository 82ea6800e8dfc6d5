#!/bin/bash
# Builds the image of the DaemonSet, without a network: image.sh NAME [RT]
#
#   NAME   what it is to be called, such as REGISTRY/rt:0.1.0
#   RT     the one-file rt (make dist) to put into it; default: target/dist/rt
#
# In it are rt, node.sh and the host's static busybox, and nothing else. podman, buildah or docker builds it, the first that is here;
# BUILDER names another, with flags where it needs them.
set -euo pipefail

die() { echo "image: $*" >&2; exit 1; }
[ $# -ge 1 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
name=$1 rt=${2:-$here/../../target/dist/rt}
[ -x "$rt" ] || die "$rt is no executable: make dist makes it"
read -ra builder <<<"${BUILDER:-}"
for command in podman buildah docker; do
  [ ${#builder[@]} -gt 0 ] || ! command -v $command >/dev/null || builder=($command)
done
[ ${#builder[@]} -gt 0 ] || die "there is no podman, buildah or docker; run: apt-get install --no-install-recommends podman"
busybox=$(command -v busybox) || die "there is no busybox; run: apt-get install --no-install-recommends busybox-static"
! readelf -lW "$busybox" 2>/dev/null | grep -q INTERP || die "$busybox is linked dynamically; run: apt-get install --no-install-recommends busybox-static"

root=$(mktemp -d); trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
mkdir "$root/bin" "$root/opt" "$root/tmp"
cp "$busybox" "$root/bin/busybox"
# What node.sh and the DaemonSet call; of the rest somebody who looks around in the pod.
for applet in $("$busybox" --list); do [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"; done
cp "$rt" "$root/opt/rt"
cp "$here/node.sh" "$root/opt/node.sh"
"${builder[@]}" build -q -f "$here/Dockerfile" -t "$name" "$root" >/dev/null
echo "$name"
