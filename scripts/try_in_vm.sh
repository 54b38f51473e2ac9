#!/usr/bin/env bash
# Tries a workspace of drives in a virtual machine, as a VMM attaches it: a Debian cloud kernel in qemu, with two read-only
# virtio-blk drives, that hydrates, records and goes on with a session over a network to a real `serve`.
#
#     scripts/try_in_vm.sh [FILES]
#
# FILES is the number of files in the repository, 2000 by default. Needs qemu-system-x86_64, busybox-static, cpio, git, curl,
# and apt, from which it downloads the kernel (27 MB) without installing it. The mirror runs from .venv, which is created
# like that of scripts/test.sh. Everything else is in a temporary directory, which is removed at the end; the kernel stays in
# build/vm. The listeners are on loopback. Takes about a minute, and gives up after five.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

here=$PWD
deadline=300
# In this order, each needs only those before it. What a kernel has built in is no file, and is left out.
modules="libcrc32c virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk erofs overlay
    failover net_failover virtio_net"

for tool in qemu-system-x86_64 busybox cpio git curl apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
done
files=${1:-2000}
[[ $files =~ ^[0-9]+$ ]] || fail "usage: ${0##*/} [FILES]"

# Before the download, because it can fail: without a package index, for example.
make_test_venv

# --- the kernel -------------------------------------------------------------------------------------------------------
kernel=$here/build/vm
if ! compgen -G "$kernel/boot/vmlinuz-*" >/dev/null; then
    package=$(apt-cache depends --important linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
    [ -n "$package" ] || fail "apt knows no linux-image-cloud-amd64"
    rm -rf "$kernel" "$kernel.new"
    mkdir -p "$kernel.new"
    # apt downloads as the user _apt, who may not be able to reach the checkout.
    download=$(mktemp -d)
    trap 'rm -rf "$download"' EXIT
    if [ "$(id -u)" = 0 ] && id _apt >/dev/null 2>&1; then chown _apt "$download"; fi
    (cd "$download" && apt-get --quiet download "$package" >&2)
    dpkg-deb --extract "$download"/*.deb "$kernel.new"
    rm -rf "$download"
    trap - EXIT
    mv "$kernel.new" "$kernel"
fi
image=$(compgen -G "$kernel/boot/vmlinuz-*" | head -n 1)

# --- the mirror and the drives ----------------------------------------------------------------------------------------
work=$(mktemp -d)
coproc MIRROR { exec .venv/bin/python -m tests.workspace.disk.serve_for_vm "$work" "$files"; }
mirror=$MIRROR_PID
clean_up() {
    # The mirror ends when its stdin does.
    exec {to_mirror}>&-
    wait "$mirror" 2>/dev/null || true
    rm -rf "$work"
}
exec {to_mirror}>&"${MIRROR[1]}" {from_mirror}<&"${MIRROR[0]}"
eval "exec ${MIRROR[1]}>&-"
trap clean_up EXIT
line=""
read -r -t 120 -u "$from_mirror" line || true
[ "$line" = ready ] || fail "the mirror did not start"

# --- the guest --------------------------------------------------------------------------------------------------------
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,root,modules,workspaces}
cp "$(command -v busybox)" "$root/bin/busybox"
for tool in $("$root/bin/busybox" --list); do
    [ -e "$root/bin/$tool" ] || ln -s busybox "$root/bin/$tool"
done
# busybox of Debian has no cksum.
for program in git curl cksum; do
    path=$(command -v "$program")
    rm -f "$root/bin/$program"
    cp -L "$path" "$root/bin/$program"
    ldd "$path" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
order=""
for module in $modules; do
    path=$(find "$kernel/lib/modules" -name "$module.ko")
    [ -z "$path" ] || { cp "$path" "$root/modules/" && order="$order $module"; }
done
cp "$work/guest.sh" "$work/addresses" "$root/"
cat >"$root/init" <<END
#!/bin/sh
export PATH=/bin HOME=/root TERM=dumb GIT_PAGER=cat GIT_EXEC_PATH=/bin GIT_TEMPLATE_DIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in$order; do insmod /modules/\$module.ko || echo "try: no module \$module"; done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
. /addresses
. /guest.sh
exec 2>&1
uname -r
cd /workspaces
try() { echo "try: \$*"; "\$@" || { echo "try: FAILED with \$?"; FAILED=yes; }; }
try gitmirror_hydrate acme/widgets one
try umount one
try gitmirror_hydrate acme/widgets one
cd one
try git status --short --branch
try git log --oneline -n 3
echo change >>README.md
git config --global user.name agent
git config --global user.email agent@example.com
try git commit --quiet --all --message 'A change'
echo more >more.txt
try gitmirror_record in-a-vm .
cd ..
try gitmirror_hydrate acme/widgets two session:in-a-vm
try cat two/more.txt
try git -C two fsck --no-progress
echo "try: move"
sleep 1
while [ "\$(git ls-remote "\$GITMIRROR_GIT/acme/widgets" refs/heads/main | cut -f 1)" = "\$(git -C one rev-parse HEAD~2)" ]; do
    sleep 1
done
try gitmirror_hydrate acme/widgets three
try cat three/README.md
try git -C three status --short --branch
try umount one two three
mount | grep -E 'erofs|overlay|gitmirror' && FAILED=yes
ls -A /run
echo "try: \${FAILED:-done}"
poweroff -f
END
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet --create --format=newc | gzip -1) >"$work/initramfs"

# --- the machine ------------------------------------------------------------------------------------------------------
: >"$work/console"
timeout "$deadline" qemu-system-x86_64 -accel tcg -m 1024 -display none -monitor none -serial file:"$work/console" -no-reboot \
    -kernel "$image" -initrd "$work/initramfs" -append "console=ttyS0 quiet panic=-1" \
    -drive "file=$work/tree,if=virtio,format=raw,readonly=on" -drive "file=$work/data,if=virtio,format=raw,readonly=on" \
    -netdev user,id=net -device virtio-net-pci,netdev=net &
machine=$!
moved=""
while kill -0 "$machine" 2>/dev/null; do
    if [ -z "$moved" ] && grep -q '^try: move' "$work/console"; then
        moved=yes
        echo move >&"$to_mirror"
    fi
    sleep 0.2
done
wait "$machine" || true
tr -d '\r' <"$work/console"
grep -q '^try: done' "$work/console"
