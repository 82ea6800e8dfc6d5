#!/bin/bash
# Installs packages of the distribution, after saying so: install.sh PACKAGE...
# APT, if set, is the command to use instead of apt-get.
set -euo pipefail
die() { echo "install: $*" >&2; exit 1; }

apt=${APT:-apt-get}
line="$apt install -y --no-install-recommends $*"
command -v "${apt%% *}" >/dev/null || die "these packages are missing, and there is no ${apt%% *} to install them with: $*"
as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || die "these packages are missing, and neither root nor sudo is here to install them; as root, run: $line"
  as_root=(sudo)
fi
shopt -s nullglob
lists=(/var/lib/apt/lists/*_Packages*)
[ ${#lists[@]} -gt 0 ] || { echo "+ ${as_root[*]} $apt update"; "${as_root[@]}" $apt update -q; }
echo "+ ${as_root[*]} $line"
# Lists that are old name versions that are gone: once more with new ones.
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" $line -q </dev/null && exit
echo "+ ${as_root[*]} $apt update"
"${as_root[@]}" $apt update -q
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" $line -q </dev/null || die "could not install: $*"
