#!/bin/bash
# The one-file rt in a bare chroot of another distribution: Debian's SUITE (trixie), of which a few packages are unpacked and nothing is set up. QEMU,
# which carries the guest where there is no KVM, is that distribution's own.
. "$(dirname "$0")/lib.sh"

suite=${SUITE:-trixie} root=$work/root
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
mkdir -p "$work"/apt/{lists,archives}/partial
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/apt/sources.list"
apt() {
  apt-get -q -o APT::Sandbox::User=root -o Dir::State="$work/apt" -o Dir::State::status=/dev/null -o Dir::Cache="$work/apt" \
    -o Dir::Etc::SourceList="$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::PreferencesParts=/dev/null "$@"
}
# base-files lays the links to /usr, so that it comes first.
unpack() {
  local packages=("$work"/apt/archives/*.deb)
  for package in "$work"/apt/archives/base-files_*.deb "${packages[@]}"; do dpkg-deb -x "$package" "$root" || return; done
}
# inside COMMAND: in a mount namespace of its own. The root is a directory, not a mount.
inside() {
  unshare -m sh -ec 'mount --make-rprivate / && cd "$0" && for dir in proc dev sys; do mount --rbind /$dir $dir; done && exec chroot . /bin/sh -ec "$1"' "$root" "$1"
}

check elsewhere::lists apt update
check elsewhere::packages apt install -y --download-only --no-install-recommends base-files dash coreutils busybox-static qemu-system-x86
check elsewhere::root unpack
rm -rf "$work/apt"
check elsewhere::one_file env ZSTD_CLEVEL=1 packaging/dist.sh "$RT" target/release/guest/tuned "$root/usr/bin/rt"
mkdir -p "$root/bundle"
lay_rootfs "$root/bundle/rootfs"
cp "$root/usr/bin/busybox" "$root/bundle/rootfs/bin/busybox"
check elsewhere::is_another_distribution says "$suite" inside '. /etc/os-release && echo $VERSION_CODENAME'
check elsewhere::spec inside 'cd /bundle && rt spec'
sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"sh", "-c", "uname -s; exit 7"/' "$root/bundle/config.json"
runs() { [ "$(inside 'rt run -b /bundle elsewhere'; echo $?)" = "Linux
7" ]; }
check elsewhere::runs runs
check elsewhere::runs_from_the_unpacked_guest runs
check elsewhere::nothing_is_left says "" inside 'rt list -q; rt gc; ls -A /run/rt'
check elsewhere::no_process_is_left no_processes_of elsewhere
summary
