#!/bin/bash
# Boots a machine with a KVM that works, on any host, and runs commands in it.
#
#   kvm-machine.sh COMMAND...     each COMMAND is a line of bash, run in turn as root; its output comes as it is written
#
# The exit status is that of the first command that failed, 0 when none did, 125 when the machine itself failed.
#
# QEMU's software emulation carries AMD's SVM with nested paging (-cpu max,+svm), so that a Debian kernel in it loads kvm_amd and
# has a real /dev/kvm, in which a stock guest boots. One processor: with two, the emulator now and then breaks a kernel
# that patches its own code ("Oops: int3"). Its time runs 10 to 30 times slower than hardware's.
#
# Inside, the caller's root file system lies read-only below an overlay in memory: nothing of it is changed. The working
# directory is the caller's. /dev, /proc, /sys and /run are the machine's own, cgroups are version 2, /dev/vhost-vsock,
# /dev/vhost-net and /dev/net/tun are there, and two network cards (eth0, eth1) with a wire between them. TMPDIR is a file
# system in memory; files left in $KVM_MACHINE_OUT of the machine are in $KVM_MACHINE_OUT of the caller afterwards.
#
#   KVM_MACHINE_MEM      MiB (default 4096)
#   KVM_MACHINE_TIMEOUT  seconds until the machine is stopped (default 1500)
#   KVM_MACHINE_OUT      a directory, shared both ways (default: none)
#   KVM_MACHINE_ENV      names of variables to pass on, separated by spaces
#   KVM_MACHINE_ROOT     how the caller's files get there: 9p (default), cached, or virtiofs, which asks for a file's pages
#                        anew whenever it is opened, as a disk that is not the host's own
#   KVM_MACHINE_ICOUNT   not empty: its clocks count instructions, one a nanosecond, whatever else runs on this host
#   KVM_MACHINE_DEBUG    not empty: the machine's kernel messages are shown
set -Eeuo pipefail
shopt -s inherit_errexit

die() { echo "kvm-machine: $*" >&2; exit 125; }
[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
trap 'die "line $LINENO: $BASH_COMMAND: failed with $?"' ERR

mem=${KVM_MACHINE_MEM:-4096} limit=${KVM_MACHINE_TIMEOUT:-1500} out=${KVM_MACHINE_OUT:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rt/kvm-machine root=${KVM_MACHINE_ROOT:-9p}
for tool in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio xz:xz-utils apt-get:apt; do
  command -v "${tool%:*}" >/dev/null || die "${tool%:*} is not here; run: apt-get install --no-install-recommends ${tool#*:}"
done

# What the machine needs and Debian's kernel has as modules, in load order. Names may be built in with a later kernel.
modules="irqbypass ccp kvm kvm-amd overlay tun tap vhost_iotlb vhost vhost_net vsock vmw_vsock_virtio_transport_common
  vhost_vsock netfs 9pnet 9pnet_virtio 9p llc stp bridge veth loop dummy macvlan macvtap ipvlan sch_ingress cls_u32 act_mirred cls_bpf
  ip_tunnel tunnel4 ipip sit gre ip_gre tunnel6 ip6_tunnel ip6_gre e1000
  udp_tunnel ip6_udp_tunnel libcurve25519-generic curve25519-x86_64 libchacha chacha-x86_64 poly1305-x86_64 libchacha20poly1305 wireguard
  crc32c_generic libcrc32c nfnetlink nf_defrag_ipv4 nf_defrag_ipv6 nf_conntrack nf_nat nf_tables nft_chain_nat x_tables nft_compat xt_MASQUERADE
  xt_comment xt_nat"

# Makes $1/vmlinuz and $1/initrd.
build() {
  local work=$1.new package release name file
  rm -rf "$work"; mkdir -p "$work/root"/{bin,proc,sys,dev,modules,host,rw,new}
  package=$2
  echo "kvm-machine: downloading $package" >&2
  (cd "$work" && apt-get download -q -o APT::Sandbox::User="$(id -un)" "$package" >apt.log 2>&1) ||
    die "apt-get download $package failed ($(tail -n 1 "$work/apt.log")); run apt-get update and try again"
  dpkg-deb -x "$work"/*.deb "$work/image"
  release=$(basename "$work"/image/boot/vmlinuz-*); release=${release#vmlinuz-}
  cp "$work/image/boot/vmlinuz-$release" "$work/vmlinuz"
  for name in $modules; do
    file=$(find "$work/image" -name "$name.ko*" | head -n 1)
    case $file in
      '') grep -qE "/${name//[-_]/[-_]}\.ko$" "$work/image/lib/modules/$release/modules.builtin" || die "$package has no module $name" ;;
      *.xz) xz -dc "$file" >"$work/root/modules/$name.ko"; echo "$name" ;;
      *) cp "$file" "$work/root/modules/$name.ko"; echo "$name" ;;
    esac
  done >"$work/root/modules/order"
  cp "$(command -v busybox)" "$work/root/bin/busybox"
  init >"$work/root/init"; chmod +x "$work/root/init"
  (cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"
  rm -rf "$work/root" "$work/image" "$work"/*.deb "$work/apt.log" "$1"
  mv "$work" "$1"
  find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf {} +
}

# The machine's /init. /command comes from a second archive, made for each run.
init() { cat <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
fail() { echo "kvm-machine: $*" >/dev/console; echo 125 >/dev/vport0p2; poweroff -f; }
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
# No namespace has tunnels that nobody made.
echo 2 >/proc/sys/net/core/fb_tunnels_only_for_init_net
for m in $(cat /modules/order); do insmod /modules/$m.ko || fail "cannot load the module $m"; done
for n in 1 2 3; do for _ in 1 2 3 4 5 6 7 8 9; do [ -c /dev/vport0p$n ] && break; sleep 0.1; done; done
# Whatever comes, what counts is that it interrupts.
cat /dev/vport0p3 >/dev/null &
p9=trans=virtio,version=9p2000.L,msize=1048576
case " $(cat /proc/cmdline) " in
  *" host=9p "*) mount -t 9p host /host -o ro,$p9,cache=loose ;;
  *) mount -t virtiofs host /host -o ro ;;
esac || fail "cannot mount the caller's root file system"
mount -t tmpfs rw /rw; mkdir -p /rw/upper /rw/work
mount -t overlay root /new -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work || fail "cannot mount the overlay"
mount -t proc proc /new/proc; mount -t sysfs sys /new/sys; mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm; mount -t devpts devpts /new/dev/pts -o ptmxmode=0666,gid=5; mount -t tmpfs shm /new/dev/shm
mount -t tmpfs run /new/run; mkdir -p -m 1777 /new/run/lock /new/run/tmp
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup || fail "cannot mount cgroup2"
for l in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do ln -sfn "${l#*:}" "/new/dev/${l%%:*}"; done
for d in kvm vhost-vsock vhost-net net/tun; do [ -c /new/dev/$d ] || fail "there is no /dev/$d"; done
ifconfig lo 127.0.0.1 up; hostname kvm-machine
cp /command /new/run/kvm-machine
(chroot /new /bin/bash /run/kvm-machine </dev/null 2>&1; echo $? >/rw/status) | cat >/dev/vport0p1
cat /rw/status >/dev/vport0p2
sync; poweroff -f
INIT
}

# What bash runs inside: the commands in turn.
script() {
  local name command
  echo "export HOME=/root TMPDIR=/run/tmp PATH=$(printf %q "$PATH") KVM_MACHINE=1"
  for name in ${KVM_MACHINE_ENV:-}; do [ -z "${!name+set}" ] || echo "export $name=$(printf %q "${!name}")"; done
  if [ -n "$out" ]; then
    echo "export KVM_MACHINE_OUT=$(printf %q "$out"); mkdir -p \"\$KVM_MACHINE_OUT\""
    echo 'mount -t 9p out "$KVM_MACHINE_OUT" -o trans=virtio,version=9p2000.L,msize=1048576 || exit 125'
  fi
  echo "first=0"
  for command in "$@"; do
    [ $# -eq 1 ] || printf 'echo %q\n' "kvm-machine\$ $command"
    printf '(cd %q && eval %q); status=$?\n' "$PWD" "$command"
    [ $# -eq 1 ] || echo 'echo "kvm-machine: exit status $status"'
    echo '[ $first -ne 0 ] || first=$status'
  done
  echo 'exit $first'
}

package=$(apt-cache pkgnames linux-image-6.12. | grep -E '^linux-image-6\.12\.[0-9]+\+[a-z0-9]+-amd64$' | sort -V | tail -n 1 || true)
[ -n "$package" ] || package=$(apt-cache depends linux-image-6.12-amd64 2>/dev/null | awk '$1 == "Depends:" {print $2; exit}' || true)
[ -n "$package" ] || die "apt knows no linux-image-6.12 amd64 package; run apt-get update (Debian 12 has it in bookworm-security)"
image=$cache/$({ cat "${BASH_SOURCE[0]}"; echo "$package"; } | sha256sum | cut -c1-12)
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
[ -f "$image/initrd" ] || build "$image" "$package"
flock -u 9

run=$(mktemp -d)
qemu= watchdog= server=
cleanup() {
  for pid in $watchdog $qemu $server; do kill -KILL "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
script "$@" >"$run/command"
(cd "$run" && echo command | cpio -o -H newc --quiet >command.cpio)
cat "$image/initrd" >"$run/initrd"
truncate -s %4 "$run/initrd"
cat "$run/command.cpio" >>"$run/initrd"
ulimit -n "$(ulimit -Hn)"
case $root in
  9p) share=(-virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap") ;;
  virtiofs)
    /usr/lib/qemu/virtiofsd --socket-path="$run/host.sock" -o source=/ -o cache=auto -o sandbox=chroot --rlimit-nofile=0 2>"$run/virtiofsd" 9>&- &
    server=$!
    for ((i = 0; i < 100; i++)); do [ ! -S "$run/host.sock" ] || break; sleep 0.1; done
    share=(-object "memory-backend-memfd,id=memory,size=${mem}M,share=on" -numa node,memdev=memory
      -chardev "socket,id=host,path=$run/host.sock" -device vhost-user-fs-pci,chardev=host,tag=host) ;;
  *) die "KVM_MACHINE_ROOT is $root, but has to be 9p or virtiofs" ;;
esac
[ -z "$out" ] || { mkdir -p "$out"; share+=(-virtfs "local,path=$out,mount_tag=out,security_model=none"); }
serial=file:$run/console; [ -z "${KVM_MACHINE_DEBUG:-}" ] || serial=file:/dev/stderr

# Output goes to a file, and without ioeventfd, so that it is there when the machine's write has returned: the guest's driver
# does not wait for that, and what is under way when the machine is switched off is lost.
: >"$run/output"
# The emulator changes the processor's set of pending interrupts from two threads without a lock: one that comes as a guest's guest is
# entered or left is lost now and then, and if it is the timer's, the machine stands still for good. The next interrupt
# brings the lost one along, so there is one each second; none where clocks count instructions, for figures that stay the same.
mkfifo "$run/heartbeat"
accel=(-accel tcg,thread=multi); [ -z "${KVM_MACHINE_ICOUNT:-}" ] || accel=(-accel tcg,thread=single -icount shift=0,sleep=off)
qemu-system-x86_64 -M q35 "${accel[@]}" -cpu max,+svm -smp 1 -m "$mem" \
  -nodefaults -display none -no-reboot -serial "$serial" \
  -kernel "$image/vmlinuz" -initrd "$run/initrd" -append "console=ttyS0 panic=-1 rdinit=/init quiet mitigations=off host=$root" \
  -device virtio-serial-pci,ioeventfd=off -chardev "file,id=output,path=$run/output" -device virtserialport,chardev=output,nr=1 \
  -chardev "file,id=status,path=$run/status" -device virtserialport,chardev=status,nr=2 \
  -chardev "pipe,id=heartbeat,path=$run/heartbeat" -device virtserialport,chardev=heartbeat,nr=3 \
  -netdev "dgram,id=eth0,local.type=unix,local.path=$run/eth0,remote.type=unix,remote.path=$run/eth1" -device e1000,netdev=eth0,romfile= \
  -netdev "dgram,id=eth1,local.type=unix,local.path=$run/eth1,remote.type=unix,remote.path=$run/eth0" -device e1000,netdev=eth1,romfile= \
  "${share[@]}" </dev/null 9>&- &
qemu=$!
# Ends with this script, if only a second later.
(trap - ERR; exec 8<>"$run/heartbeat"
  for ((s = 0; s < limit; s++)); do sleep 1; [ -d "$run" ] || exit 0; [ -n "${KVM_MACHINE_ICOUNT:-}" ] || echo >&8; done; kill -KILL "$qemu") >/dev/null 2>&1 9>&- &
watchdog=$!
tail -c +1 -f -s 0.2 --pid="$qemu" "$run/output"
rc=0; wait "$qemu" || rc=$?
qemu=
status=$(cat "$run/status" 2>/dev/null || true)
[ -n "$status" ] || {
  why="ended with $rc"; [ "$rc" -ne 137 ] || why="was stopped after $limit s (KVM_MACHINE_TIMEOUT)"
  [ ! -f "$run/console" ] || tail -n 30 "$run/console" >&2
  die "the machine $why before its commands had"
}
[ "$status" -ne 125 ] || [ ! -f "$run/console" ] || tail -n 30 "$run/console" >&2
exit "$status"
