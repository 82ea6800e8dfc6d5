#!/bin/bash
# Lays out runc's own test suite and prints the directory of its .bats files: fetch.sh DIR
#
# The suite comes from the distribution's source package, by the mirrors, keys and proxies that apt uses for binary packages, with lists of
# its own, so that the machine's sources stay as they are. Nothing of it is changed but the two places where it reaches for the
# network or a Go compiler (its images are made of the machine's own busybox and libraries, recvtty is ours), and the name that help and
# version begin with.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
die() { echo "conformance: $*" >&2; exit 1; }
[ $# -eq 1 ] || { sed -n 2p "$0" >&2; exit 2; }
version=1.1.5
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rt/conformance/runc-$version

download() {
  local work=$cache.new mirror
  mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(CODENAME)' 'Identifier: Packages' |
    awk '$1 == "Debian" && $3 == "bookworm" { print $2; exit }')
  [ -n "$mirror" ] || die "apt has no mirror of Debian bookworm, whose source package of runc has the suite"
  rm -rf "$work"; mkdir -p "$work"/{parts,lists/partial}
  printf 'Types: deb-src\nURIs: %s\nSuites: bookworm\nComponents: main\nSigned-By: %s\n' \
    "$mirror" /usr/share/keyrings/debian-archive-keyring.gpg >"$work/parts/source.sources"
  local apt=(apt-get -q -o "Dir::State::lists=$work/lists" -o "Dir::Etc::sourceparts=$work/parts"
    -o "Dir::Etc::sourcelist=$work/none" -o "APT::Sandbox::User=$(id -un)")
  echo "conformance: downloading the source package runc from $mirror" >&2
  (cd "$work" && "${apt[@]}" update && "${apt[@]}" source --download-only runc) >"$work/apt.log" 2>&1 ||
    die "cannot download the source package runc ($(tail -n 1 "$work/apt.log"))"
  ls "$work"/runc_$version+*.dsc >/dev/null 2>&1 || die "$mirror has not runc $version but $(cd "$work" && echo *.dsc)"
  # apt has checked what it downloaded.
  dpkg-source --no-check -x "$work"/*.dsc "$work/source" >"$work/unpack.log" 2>&1 || die "$(tail -n 1 "$work/unpack.log")"
  rm -rf "$cache"; mv "$work/source" "$cache"; rm -rf "$work"
}

# The layout of docker's busybox image, from the static busybox.
busybox_image() {
  local root=$1/busybox applet
  mkdir -p "$root"/{bin,dev,etc,home,root,tmp,usr/sbin,var/spool/mail,var/www}
  chmod 1777 "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -f "$root/bin/busybox" "$root/bin/$applet"; done
  printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n' >"$root/etc/group"
  tar -C "$root" -cf "$1/busybox.tar" .
  rm -rf "$root"
}

# What one test wants of a Debian image: a shell, grep and ldconfig with their libraries.
debian_image() {
  local root=$1/debian program library
  mkdir -p "$root"/{dev,etc,proc,sys,tmp,usr/{bin,sbin,lib,lib64}}
  for program in bin sbin lib lib64; do ln -s "usr/$program" "$root/$program"; done
  cp /etc/ld.so.conf "$root/etc"; cp -r /etc/ld.so.conf.d "$root/etc"
  cp -L /bin/sh /bin/grep "$root/usr/bin"; cp -L /sbin/ldconfig "$root/usr/sbin"
  for library in $(ldd /bin/sh /bin/grep | grep -o '/[^ ]*' | grep -v ':$' | sort -u); do
    mkdir -p "$root$(dirname "$library")"; cp -L "$library" "$root$library"
  done
  tar -C "$root" -cf "$1/debian.tar" .
  rm -rf "$root"
}

[ -d "$cache/tests/integration" ] || { mkdir -p "$(dirname "$cache")"; download; }
rm -rf "$1"; mkdir -p "$1/contrib/cmd/recvtty"
cp -r "$cache/tests" "$1/tests"
sed -i 's/runc\\ /(runc|rt)\\ /' "$1"/tests/integration/{help,version}.bats
gcc -O -o "$1/contrib/cmd/recvtty/recvtty" "$here/recvtty.c"
data=$1/tests/integration/testdata
busybox_image "$data"
debian_image "$data"
printf '#!/bin/sh\necho "BUSYBOX_IMAGE=%s DEBIAN_IMAGE=%s"\n' "$data/busybox.tar" "$data/debian.tar" >"$1/tests/integration/get-images.sh"
echo "$1/tests/integration"
