#!/bin/bash
# Makes a guest kernel; the directory with the result is printed on stdout, everything else on stderr.
#
#   build.sh quick    Debian's cloud kernel, downloaded and unpacked: seconds
#   build.sh tuned    Debian's source with tuned.config, nothing but what a container needs: about 14 minutes of CPU time
#
# The directory is ${XDG_CACHE_HOME:-~/.cache}/rt/kernel/KIND-HASH, with a link KIND to the newest:
#   vmlinux            ELF, uncompressed, stripped, entered through its PVH note. There is no decompressor, so nothing
#                      moves it to a random address (KASLR): tuned.config leaves that out.
#   release, config    uname -r of the guest, and its .config
#   modules/*.ko, modules/order     quick only: what it lacks built in, stripped, in load order (names without .ko)
#
# HASH is over this script, the package's name and version, and for the tuned kernel tuned.config. The series is pinned here; its newest patch
# release that apt knows is taken, since guests want security fixes too: after an apt-get update it may be built anew.
# Nothing is installed and root is not needed, except to bring apt's lists up to date where they are too old to name the package
# or name one that is gone. RT_JOBS is make's -j (default: all processors).
set -Eeuo pipefail
shopt -s inherit_errexit

series=6.12
# What the guest needs and Debian's kernel lacks built in: transports and devices of the guest, and tun. Dependencies are
# found and put first. Each costs memory in every guest, so what it lacks beside these (overlay, veth, netfilter, bridge:
# containers in the container) only the tuned kernel has.
quick_modules="vmw_vsock_virtio_transport virtio_net virtio-rng virtio_balloon virtio_mem virtio_blk tun"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rt/kernel
start=$SECONDS

say() { echo "guest kernel: $*" >&2; }
die() { say "$*"; exit 1; }
trap 'say "line $LINENO: $BASH_COMMAND: failed with $?"' ERR

# need COMMAND:PACKAGE...: all commands are there, or it says which packages bring them.
need() {
  local pair missing=()
  for pair in "$@"; do
    case ${pair%%:*} in
      /*) [ -e "${pair%%:*}" ] || missing+=("${pair#*:}") ;;
      *) command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}") ;;
    esac
  done
  [ ${#missing[@]} -eq 0 ] || die "the $kind kernel needs packages that are not here; run: apt-get install --no-install-recommends ${missing[*]}"
}

# refresh_lists: false when it cannot be done or was done before. At most once, since it is slow.
refresh_lists() {
  local as_root=()
  [ -z "${RT_LISTS_REFRESHED:-}" ] || return 1
  [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && as_root=(sudo) || return 1; }
  export RT_LISTS_REFRESHED=yes
  say "apt's lists of packages are old: + ${as_root[*]} apt-get update"
  "${as_root[@]}" apt-get update -q >&2
}

# find_package: sets $package to the newest that apt knows.
find_package() {
  package=$(newest_$kind)
  [ -n "$package" ] || { refresh_lists && package=$(newest_$kind); } || true
  [ -n "$package" ] || die "apt knows no kernel $series package for the $kind kernel; run apt-get update (Debian 12 has them in bookworm-security)"
}

# fetch PACKAGE[=VERSION] DIR: the package unpacked in DIR. apt checks its signature chain.
fetch() {
  say "downloading $1"
  mkdir -p "$work/deb"
  (cd "$work/deb" && apt-get download -q -o APT::Sandbox::User="$(id -un)" "$1" >"$work/apt.log" 2>&1) || {
    # Gone from the archive, perhaps: there is a newer one, then, and all begins anew with its name.
    if refresh_lists; then rm -rf "$work"; exec "$BASH" "${BASH_SOURCE[0]}" "$kind"; fi
    die "apt-get download $1 failed ($(tail -n 1 "$work/apt.log")); run apt-get update and try again"
  }
  dpkg-deb -x "$work"/deb/*.deb "$2"
  rm -r "$work/deb"
}

newest_quick() {
  apt-cache pkgnames "linux-image-$series." | grep -E '^linux-image-[0-9.]+\+[a-z0-9]+-cloud-amd64$' | sort -V | tail -n 1 || true
}

newest_tuned() {
  local version
  version=$(apt-cache madison "linux-source-$series" | awk '{print $3}' | sort -V | tail -n 1)
  echo "${version:+linux-source-$series=$version}"
}

build_quick() {
  local image=$work/image boot release out=$1
  fetch "$package" "$image"
  boot=$image/boot
  release=$(basename "$boot"/vmlinuz-*); release=${release#vmlinuz-}
  cp "$boot/config-$release" "$out/config"
  echo "$release" >"$out/release"
  extract_vmlinux "$boot/vmlinuz-$release" "$out/config" "$work/vmlinux"
  strip_vmlinux "$work/vmlinux" "$out/vmlinux"
  pack_modules "$image/lib/modules/$release" "$out/modules"
}

# extract_vmlinux BZIMAGE CONFIG OUT: the setup header says where the compressed ELF is (Documentation/arch/x86/boot.rst,
# payload_offset and payload_length at 0x248, from the end of the setup sectors), the config how it is compressed.
extract_vmlinux() {
  local sectors offset length unpack
  sectors=$(od -An -tu1 -j$((0x1f1)) -N1 "$1")
  read -r offset length < <(od -An -tu4 -j$((0x248)) -N8 "$1")
  case $(grep -oE '^CONFIG_KERNEL_[A-Z0-9]+=y' "$2") in
    CONFIG_KERNEL_ZSTD=y) need zstd:zstd; unpack="zstd -dcq" ;;
    CONFIG_KERNEL_XZ=y) unpack="xz -dc" ;;
    CONFIG_KERNEL_GZIP=y) unpack="gzip -dc" ;;
    CONFIG_KERNEL_LZ4=y) need lz4:lz4; unpack="lz4 -dcq" ;;
    *) die "$package is compressed in a way that this script does not know: $(grep -E '^CONFIG_KERNEL_[A-Z0-9]+=y' "$2")" ;;
  esac
  # The payload's last four bytes are its uncompressed size, not part of the stream.
  head -c $(((sectors + 1) * 512 + offset + length - 4)) "$1" | tail -c $((length - 4)) >"$work/payload"
  $unpack "$work/payload" >"$3" || die "$1 could not be decompressed"
}

# strip_vmlinux IN OUT: without symbols and relocations; the gaps that align its segments to 2 MiB are holes in the file.
strip_vmlinux() {
  objcopy --strip-all -R .comment -R '.rela*' "$1" "$2.dense"
  cp --sparse=always "$2.dense" "$2"
  rm "$2.dense"
  readelf -n "$2" 2>/dev/null | grep -q 'Xen' || die "$2 has no PVH note: it cannot be booted"
}

# pack_modules FROM TO: $quick_modules and what they depend on. Signatures and BTF go: to check and read them costs the guest
# hundreds of milliseconds under emulation. So do symbols that no relocation needs, and the tables for stack traces through
# the module (ORC), a quarter of it.
pack_modules() {
  local from=$1 to=$2 name
  mkdir "$to"
  : >"$to/order"
  grep -qx 'CONFIG_MODULE_SIG_FORCE=y' "$(dirname "$to")/config" && die "$package loads signed modules only"
  for name in $quick_modules; do pack_module "$name"; done
}

pack_module() { # NAME; uses pack_modules' from and to
  local name=$1 file dependency
  [ ! -e "$to/$name.ko" ] || return 0
  file=$(find "$from" -name "$name.ko*" -o -name "${name//_/-}.ko*" | head -n 1)
  if [ -z "$file" ]; then
    grep -q "/${name//[-_]/[-_]}\.ko$" "$from/modules.builtin" || die "$package has no module $name, nor is it built in"
    return 0
  fi
  case $file in *.xz) xz -dc "$file" ;; *.zst) zstd -dcq "$file" ;; *.gz) gzip -dc "$file" ;; *) cat "$file" ;; esac >"$work/$name.ko"
  for dependency in $(objcopy -O binary --only-section=.modinfo "$work/$name.ko" /dev/stdout | tr '\0' '\n' | sed -n 's/^depends=//p' | tr ',' ' '); do
    pack_module "$dependency"
  done
  strip --strip-unneeded -R .BTF -R .comment -R '.orc_*' -R '.rela.orc_*' -o "$to/$name.ko" "$work/$name.ko"
  echo "$name" >>"$to/order"
}

build_tuned() {
  local out=$1 tree=$work/source
  fetch "$package" "$work/deb-root"
  say "unpacking the source"
  mkdir "$tree"
  tar -xf "$work/deb-root/usr/src/linux-source-$series.tar.xz" -C "$tree" --strip-components=1
  rm -r "$work/deb-root"

  # What the fragment does not name is off unless something in the fragment selects it.
  KCONFIG_ALLCONFIG=$here/tuned.config make -C "$tree" allnoconfig >"$log" 2>&1 || die "make allnoconfig failed, see $log"
  check_config "$tree/.config"

  # Fixed names and date, so that one source gives one kernel wherever it is built.
  export KBUILD_BUILD_USER=rt KBUILD_BUILD_HOST=rt KBUILD_BUILD_TIMESTAMP
  KBUILD_BUILD_TIMESTAMP=$(date -u -r "$tree/Makefile")
  say "compiling (log: $log)"
  make -C "$tree" -j"${RT_JOBS:-$(nproc)}" vmlinux >>"$log" 2>&1 &
  progress $! || { grep -E 'error|Error' "$log" | head -n 5 >&2; die "the kernel did not build, see $log"; }

  cp "$tree/.config" "$out/config"
  make -s -C "$tree" kernelrelease >"$out/release"
  strip_vmlinux "$tree/vmlinux" "$out/vmlinux"
}

# check_config CONFIG: every line of the fragment took effect, or the build ends naming those that did not.
check_config() {
  local line option wrong=()
  while IFS= read -r line; do
    case $line in
      CONFIG_*=n) option=${line%=n}; ! grep -q "^$option=" "$1" || wrong+=("$line (got $(grep "^$option=" "$1"))") ;;
      CONFIG_*) option=${line%%=*}; grep -qxF -- "$line" "$1" || wrong+=("$line (got $(grep -E "(^|# )$option[= ]" "$1" || echo nothing: unknown, or a dependency is missing))") ;;
    esac
  done <"$here/tuned.config"
  [ ${#wrong[@]} -eq 0 ] || die "tuned.config has options that the kernel's configuration does not take:$(printf '\n  %s' "${wrong[@]}")"
}

# progress PID: a line every half minute until PID ends; its exit status.
progress() {
  local objects=$((SECONDS + 30))
  while kill -0 "$1" 2>/dev/null; do
    sleep 1
    [ $SECONDS -lt $objects ] || {
      objects=$((SECONDS + 30))
      say "$(grep -cE '^  (CC|AS|LD) ' "$log" || true) of about 1790 objects, $((SECONDS - start)) s"
    }
  done
  wait "$1"
}

kind=${1:-}
case $kind in
  quick) need apt-get:apt dpkg-deb:dpkg od:coreutils objcopy:binutils readelf:binutils xz:xz-utils zstd:zstd ;;
  tuned) need apt-get:apt dpkg-deb:dpkg objcopy:binutils xz:xz-utils make:make gcc:gcc flex:flex bison:bison bc:bc perl:perl \
    /usr/include/gelf.h:libelf-dev /usr/include/openssl/evp.h:libssl-dev ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

find_package
inputs=("${BASH_SOURCE[0]}")
[ "$kind" = quick ] || inputs+=("$here/tuned.config")
hash=$({ cat "${inputs[@]}"; echo "$kind $package"; } | sha256sum | cut -c1-12)
result=$cache/$kind-$hash

if [ ! -d "$result" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/.$kind.lock"
  flock -n 9 || { say "another build of the $kind kernel is running; waiting for it"; flock 9; }
fi
if [ ! -d "$result" ]; then
  work=$(mktemp -d "$cache/.$kind-XXXXXX")
  log=$cache/$kind.log
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/out"
  "build_$kind" "$work/out"
  mv "$work/out" "$result"
  say "$kind kernel $(cat "$result/release") from $package: $(($(stat -c %s "$result/vmlinux") >> 10)) KiB, $((SECONDS - start)) s"
fi
ln -sfn "$kind-$hash" "$cache/$kind"
echo "$result"
