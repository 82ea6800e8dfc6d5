#!/bin/bash
# Installs what make build has made: install.sh [--remove] ROOT PREFIX
#
#   PREFIX/bin/rt                      and, as links to it, kata-runtime and containerd-shim-rt-v2, which it also is by those names
#   PREFIX/lib/rt/guest/KIND           vmlinux and initramfs.cpio; the tuned kind where it was built, else the quick one
#   PREFIX/share                       man pages, completions, documentation
#
# ROOT goes before PREFIX and is empty for this machine. --remove takes away what a call with the same words laid.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "install: $*" >&2; exit 1; }
remove=
[ "${1-}" != --remove ] || { remove=yes; shift; }
[ $# -eq 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
root=$1 prefix=$2
[[ $prefix == /* ]] || die "PREFIX is $prefix, but has to be an absolute path"
to=$root$prefix
links=(kata-runtime containerd-shim-rt-v2)
completions=(share/bash-completion/completions/rt=completions/rt.bash share/zsh/site-functions/_rt=completions/_rt share/fish/vendor_completions.d/rt.fish=completions/rt.fish)
# Nobody's when they are empty, unlike bin, lib, share, share/doc and share/man.
directories=(share/bash-completion{/completions,} share/zsh{/site-functions,} share/fish{/vendor_completions.d,} share/man/man{5,8})

if [ -n "$remove" ]; then
  for link in "${links[@]}"; do
    [ "$(readlink "$to/bin/$link" || true)" != rt ] || rm -f "$to/bin/$link"
    [ "$(readlink "$to/share/man/man8/$link.8" || true)" != rt.8 ] || rm -f "$to/share/man/man8/$link.8"
  done
  rm -f "$to/bin/rt"
  for pair in "${completions[@]}"; do rm -f "$to/${pair%%=*}"; done
  for page in man/*.[0-9]; do rm -f "$to/share/man/man${page##*.}/${page#man/}"; done
  rm -rf "$to/lib/rt" "$to/share/doc/rt"
  for dir in "${directories[@]}"; do [ ! -d "$to/$dir" ] || rmdir --ignore-fail-on-non-empty "$to/$dir"; done
  exit
fi

[ -x target/release/rt ] || die "there is no target/release/rt; run make build first"
kind=quick
[ ! -e target/release/guest/tuned/initramfs.cpio ] || kind=tuned
[ -e target/release/guest/$kind/initramfs.cpio ] || die "there is no guest in target/release/guest; run make build first"

install -D -m 0755 target/release/rt "$to/bin/rt.new"
# Sandboxes run this file: another takes its name, its content stays.
mv -f "$to/bin/rt.new" "$to/bin/rt"
for link in "${links[@]}"; do ln -sfn rt "$to/bin/$link"; done
for file in vmlinux initramfs.cpio; do
  install -D -m 0644 "target/release/guest/$kind/$file" "$to/lib/rt/guest/$kind/$file.new"
  mv -f "$to/lib/rt/guest/$kind/$file.new" "$to/lib/rt/guest/$kind/$file"
done
for page in man/*.[0-9]; do install -D -m 0644 "$page" "$to/share/man/man${page##*.}/${page#man/}"; done
for link in "${links[@]}"; do ln -sfn rt.8 "$to/share/man/man8/$link.8"; done
for pair in "${completions[@]}"; do install -D -m 0644 "${pair#*=}" "$to/${pair%%=*}"; done
install -D -m 0644 -t "$to/share/doc/rt" README.md CHANGELOG.md LICENSE
