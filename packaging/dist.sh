#!/bin/bash
# Packs a guest into rt's own file: dist.sh RT GUEST_DIR OUT
#
# GUEST_DIR holds vmlinux and initramfs.cpio. They become ELF sections, which a running rt finds (src/config/packed.rs), nothing
# loads, and strip leaves alone. The same input gives the same bytes. ZSTD_CLEVEL is zstd's (19).
set -euo pipefail

die() { echo "dist: $*" >&2; exit 1; }
[ $# -eq 3 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
rt=$1 guest=$2 out=$3
for command in objcopy readelf zstd; do command -v $command >/dev/null || die "$command is not here; run: apt-get install --no-install-recommends binutils zstd"; done
[ -x "$rt" ] || die "$rt is no executable: rt is to be built first"
! readelf -lW "$rt" | grep -q INTERP || die "$rt is linked dynamically: it would not run elsewhere"
! readelf -SW "$rt" | grep -q '\.rt\.guest' || die "$rt holds a guest already"

work=$(mktemp -d "$(dirname "$out")/.dist-XXXXXX"); trap 'rm -rf "$work"' EXIT
sections=()
# On a terminal zstd shows how far it is.
quiet=(-q); [ ! -t 2 ] || quiet=()
for name in vmlinux initramfs.cpio; do
  [ -s "$guest/$name" ] || die "$guest holds no $name; make it with make guest"
  ZSTD_CLEVEL=${ZSTD_CLEVEL:-19} zstd "${quiet[@]}" --no-check -o "$work/$name" "$guest/$name"
  echo "$name $(stat -c %s "$guest/$name") $(sha256sum <"$guest/$name" | cut -d' ' -f1)" >>"$work/index"
  sections+=(--add-section ".rt.$name=$work/$name")
done
objcopy "${sections[@]}" --add-section ".rt.guest=$work/index" "$rt" "$work/rt"
chmod 0755 "$work/rt"
mv "$work/rt" "$out"
