#!/bin/sh
# Runs a command of this checkout in a virtual machine whose kernel has control groups v2. By hand, no part of the suite.
#
#     tests/vm/run.sh KERNEL.deb [COMMAND...]
#
# KERNEL.deb is a Debian kernel package, such as `apt-get download linux-image-cloud-amd64`'s dependency gives; without a
# COMMAND, guest.sh beside this file is run. The guest sees this machine's files, read-only, and has its own /tmp and
# /run. Needs qemu-system-x86_64, busybox (static) and dpkg-deb; skips with status 77 without them. KVM is not needed;
# ENCLAVE_VM_ACCEL=kvm uses it. ENCLAVE_VM_TIMEOUT_S (1200) bounds it all.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
for tool in qemu-system-x86_64 busybox dpkg-deb; do
    command -v "$tool" >/dev/null || { echo "skipped: no $tool here" >&2; exit 77; }
done
[ $# -gt 0 ] && [ -f "$1" ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
package=$1
shift
[ $# -gt 0 ] || set -- "$here/guest.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
dpkg-deb -x "$package" "$work/package"
modules=$(echo "$work"/package/lib/modules/* "$work"/package/usr/lib/modules/*)
for modules in $modules; do [ -d "$modules" ] && break; done
version=$(basename "$modules")

# The first file system: busybox, the modules that reach this machine's files, and init.
initial=$work/initial
target=$initial/lib/modules/$version
mkdir -p "$initial/bin" "$initial/proc" "$initial/sys" "$initial/dev" "$initial/host" "$target"
for part in fs/9p net/9p fs/netfs fs/fscache drivers/virtio; do
    [ -d "$modules/kernel/$part" ] || continue
    mkdir -p "$target/kernel/$part"
    cp "$modules/kernel/$part"/*.ko* "$target/kernel/$part/"
done
find "$target" -name '*.xz' -exec busybox unxz {} +
cp "$modules"/modules.builtin "$modules"/modules.order "$target/"
busybox depmod -b "$initial" "$version"
cp "$(command -v busybox)" "$initial/bin/busybox"
cp "$here/init" "$initial/init"
: >"$initial/command"
for word in "$@"; do
    printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")" >>"$initial/command"
done
printf '%s\n' "$(cd "$here/../.." && pwd)" >"$initial/checkout"
(cd "$initial" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initial.cpio"

timeout "${ENCLAVE_VM_TIMEOUT_S:-1200}" qemu-system-x86_64 \
    -accel "${ENCLAVE_VM_ACCEL:-tcg,thread=multi}" -cpu "${ENCLAVE_VM_CPU:-max}" -smp 2 -m 2048 -nodefaults -no-user-config -display none -no-reboot \
    -serial "file:$work/console" \
    -kernel "$(echo "$work"/package/boot/vmlinuz-*)" -initrd "$work/initial.cpio" \
    -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap </dev/null &
machine=$!
while [ ! -e "$work/console" ]; do sleep 0.1; done
tail -n +1 -f --pid "$machine" "$work/console"
wait "$machine" || echo "the machine ended with $?" >&2
status=$(tr -d '\r' <"$work/console" | sed -n 's/^command ended with \([0-9]*\)$/\1/p')
exit "${status:-1}"
