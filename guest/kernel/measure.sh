#!/bin/bash
# What a guest kernel needs from the machine's start to /init, in instructions: the same figure on any machine, loaded or
# not, so fit for a budget.
#
#   measure.sh VMLINUX INITRAMFS [KERNEL-COMMAND-LINE...]    prints virtual milliseconds, as "96.1"
#   MEASURE_MACHINE   QEMU's -M (default microvm,acpi=off; microvm,acpi=on needs tsc_early_khz=1000000, see README.md)
#   MEASURE_MEM       MiB (default 128)       MEASURE_CPUS     processors (default 1)
#   MEASURE_TIMEOUT   seconds of real time (default 120)
#
# QEMU's software emulation runs with -icount shift=0,sleep=off: one instruction takes one virtual nanosecond, waiting for a
# timer takes what it waits and no real time, and the guest's TSC counts these nanoseconds from zero. Beside the given
# initramfs, which is unpacked as always, the guest gets a program of its own as init, whose first instruction reads the TSC
# and which writes it to the first serial port. The kernel prints nothing (loglevel=0): every character would count.
set -euo pipefail

die() { echo "measure: $*" >&2; exit 1; }
[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
vmlinux=$1 initramfs=$2; shift 2
for file in "$vmlinux" "$initramfs"; do [ -r "$file" ] || die "$file: cannot be read"; done
for tool in qemu-system-x86_64:qemu-system-x86 as:binutils cpio:cpio; do
  command -v "${tool%:*}" >/dev/null || die "${tool%:*} is not here; run: apt-get install --no-install-recommends ${tool#*:}"
done

dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cat >"$dir/init.s" <<'S'
# rdtsc; then 16 hexadecimal digits and a newline to /ttyS0 (character device 4:64); then reset.
.globl _start
_start:
  rdtsc
  shl $32, %rdx
  or %rax, %rdx
  mov $buf+15, %edi
1:mov %edx, %eax
  and $15, %eax
  mov digits(%rax), %al
  mov %al, (%rdi)
  dec %rdi
  shr $4, %rdx
  cmp $buf, %rdi
  jae 1b
  mov $133, %eax        # mknod
  mov $name, %edi
  mov $0020600, %esi
  mov $0x440, %edx
  syscall
  mov $2, %eax          # open, write only, no controlling terminal
  mov $name, %edi
  mov $0401, %esi
  syscall
  mov %eax, %edi
  mov $1, %eax          # write
  mov $buf, %esi
  mov $17, %edx
  syscall
  mov $16, %eax         # ioctl TCSBRK 1: wait until it is sent
  mov $0x5409, %esi
  mov $1, %edx
  syscall
  mov $169, %eax        # reboot
  mov $0xfee1dead, %edi
  mov $672274793, %esi
  mov $0x01234567, %edx
  syscall
2:jmp 2b
.data
digits: .ascii "0123456789abcdef"
name: .asciz "/ttyS0"
buf: .ascii "................\n"
S
as -o "$dir/init.o" "$dir/init.s" && ld -s -o "$dir/measure" "$dir/init.o"
cp "$initramfs" "$dir/initramfs"
truncate -s %4 "$dir/initramfs" # the kernel takes archives one after the other (but after lz4 none), each at a multiple of four
(cd "$dir" && echo measure | cpio -o -H newc -R 0:0 --quiet >>initramfs)

# reboot=t and panic=-1: a guest that ends, or cannot start, ends QEMU.
timeout -k 5 "${MEASURE_TIMEOUT:-120}" qemu-system-x86_64 -M "${MEASURE_MACHINE:-microvm,acpi=off}" -accel tcg,thread=single -icount shift=0,sleep=off \
  -cpu max -smp "${MEASURE_CPUS:-1}" -m "${MEASURE_MEM:-128}" -seed 1 -rtc base=2020-01-01,clock=vm -nodefaults -display none -no-reboot -serial "file:$dir/out" \
  -kernel "$vmlinux" -initrd "$dir/initramfs" \
  -append "rdinit=/measure loglevel=0 panic=-1 reboot=t $*" </dev/null 2>"$dir/err" ||
  die "QEMU failed or did not end within ${MEASURE_TIMEOUT:-120} s: $(tail -n 1 "$dir/err")"
ticks=$(grep -aoE '^[0-9a-f]{16}' "$dir/out") ||
  die "$vmlinux did not get to init (command line: $*); add ignore_loglevel to see why. The guest said: $(tail -c 2000 "$dir/out")"
awk -v ns="$((16#$ticks))" 'BEGIN { printf "%.1f\n", ns / 1e6 }'
