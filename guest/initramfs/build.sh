#!/bin/bash
# Packs the guest's initramfs: build.sh KERNEL_DIR AGENT OUT
#
#   /init                           AGENT, a static executable
#   /dev /proc /sys /run /tmp       empty; the agent mounts on them. /dev/console is in the kernel's own archive
#   /modules/order                  for a kernel with modules (KERNEL_DIR/modules): names of files in /modules, one in a
#   /modules/NN-NAME.ko             line, in the order in which the agent loads them (finit_module)
#
# The archive is newc cpio, not compressed: see README.md for why. The same input gives the same bytes: sorted, owner 0:0, time 0.
set -euo pipefail
shopt -s nullglob

die() { echo "initramfs: $*" >&2; exit 1; }
[ $# -eq 3 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
kernel=$1 agent=$2 out=$3
command -v cpio >/dev/null || die "cpio is not here; run: apt-get install --no-install-recommends cpio"
[ -f "$kernel/vmlinux" ] || die "$kernel holds no vmlinux; make it with guest/kernel/build.sh"
[ -x "$agent" ] || die "$agent is no executable: the agent is to be built first"
! readelf -lW "$agent" 2>/dev/null | grep -q INTERP || die "$agent is linked dynamically: the guest has no libraries, build it static"

root=$(mktemp -d "$(dirname "$out")/.initramfs-XXXXXX"); trap 'rm -rf "$root"' EXIT
mkdir "$root"/tree "$root"/tree/{dev,proc,sys,run,tmp}
install -m 0755 "$agent" "$root/tree/init"
if [ -s "$kernel/modules/order" ]; then
  mkdir "$root/tree/modules"
  number=10
  while read -r name; do
    install -m 0644 "$kernel/modules/$name.ko" "$root/tree/modules/$number-$name.ko"
    echo "$number-$name.ko"
    number=$((number + 1))
  done <"$kernel/modules/order" >"$root/tree/modules/order"
fi
chmod 0755 "$root/tree" "$root"/tree/*/
chmod 1777 "$root/tree/tmp"
(cd "$root/tree" && find . -mindepth 1 -exec touch -h -d @0 {} + && find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort |
  cpio -o -H newc -R 0:0 --reproducible --quiet) >"$root/archive"
mv "$root/archive" "$out"
