#!/bin/bash
# Makes a Debian package of what make build has made: deb.sh OUT_DIR; prints the package's path.
#
# DEBFULLNAME and DEBEMAIL name who maintains it, as for Debian's own tools. SOURCE_DATE_EPOCH is the time of its files (default: that of the newest commit, or now).
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "deb: $*" >&2; exit 1; }
[ $# -eq 1 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
command -v dpkg-deb >/dev/null || die "dpkg-deb is not here: this needs a Debian"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[ -n "$version" ] || die "Cargo.toml tells no version"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
maintainer=${DEBEMAIL:+${DEBFULLNAME:-The rt developers} <$DEBEMAIL>}
[ -n "$maintainer" ] || maintainer=$(sed -n 's/^Maintainer: //p' packaging/debian/control)
date=$(date -R -u -d "@$SOURCE_DATE_EPOCH")

mkdir -p "$1"
root=$(mktemp -d "$1/.root-XXXXXX"); trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
umask 022
packaging/install.sh "$root" /usr

# Debian's places and rules.
strip --strip-all --remove-section=.comment --remove-section=.note "$root/usr/bin/rt"
mkdir -p "$root/usr/share/zsh/vendor-completions" "$root/usr/share/lintian/overrides" "$root/DEBIAN"
mv "$root/usr/share/zsh/site-functions/_rt" "$root/usr/share/zsh/vendor-completions/_rt"
rmdir "$root/usr/share/zsh/site-functions"
rm "$root/usr/share/doc/rt/LICENSE"
install -m 0644 packaging/debian/copyright "$root/usr/share/doc/rt/copyright"
install -m 0644 packaging/debian/lintian-overrides "$root/usr/share/lintian/overrides/rt"
printf 'rt (%s) unstable; urgency=medium\n\n  * Version %s; CHANGELOG.md.gz says what is new.\n\n -- %s  %s\n' \
  "$version" "$version" "$maintainer" "$date" >"$root/usr/share/doc/rt/changelog"
for page in "$root"/usr/share/man/man*/*; do
  [ -L "$page" ] && { ln -s "$(readlink "$page").gz" "$page.gz"; rm "$page"; } || gzip -9n "$page"
done
gzip -9n "$root/usr/share/doc/rt/changelog" "$root/usr/share/doc/rt/CHANGELOG.md"

size=$(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$size/" -e "s|^Maintainer: .*|Maintainer: $maintainer|" packaging/debian/control >"$root/DEBIAN/control"
(cd "$root" && find usr -type f -printf '%P\0' | LC_ALL=C sort -z | sed -z 's|^|usr/|' | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 0644 "$root/DEBIAN"/*
out=$1/rt_${version}_amd64.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$out" >/dev/null
echo "$out"
