#!/bin/bash
# bench/storage.sh: disks and shared folders on Mimeo (bt) and on QEMU TCG in one run: the same kernel
# (Debian's generic one, which has 9p), the same initramfs, virtio-blk on the same raw image through the
# host's page cache, the same folder. Prints a table for docs/performance.md.
# Environment: REPS (3), MIMEO (the binary; built when not given), LOGS (a folder that keeps the guests'
# output).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
reps=${REPS:-3}
if [ -z "${MIMEO:-}" ]; then
    cargo build --release --manifest-path "$root/Cargo.toml"
    MIMEO=${CARGO_TARGET_DIR:-$root/target}/release/mimeo
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
logs=${LOGS:-$out}

# The quickstart guest's files: prepared once, in the cache.
echo 'poweroff -f' | "$MIMEO" run busybox-generic >/dev/null 2>&1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mimeo
dir=$(dirname "$(ls -t "$cache"/debian-generic-*/*/devices.cpio | head -1)")

mkdir -p "$out/root"/{bin,dev,proc,sys,mnt} "$out/share/tree"
install -m 755 "$dir/busybox" "$out/root/bin/busybox"
gcc -O2 -static -o "$out/root/bin/iobench" "$here/guest/iobench.c"
cat >"$out/root/init" <<'I'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in virtio_pci virtio_mmio virtio_blk virtiofs 9p 9pnet_virtio; do modprobe -q $m; done
row() { n=$1; shift; echo "ROW $n $("$@")"; }
row disk-read-1M iobench /dev/vda r seq 1048576 256
row disk-write-1M iobench /dev/vda w seq 1048576 128
row disk-read-4K-random iobench /dev/vda r rand 4096 4000
row disk-write-4K-random iobench /dev/vda w rand 4096 4000
for fs in virtiofs 9p; do
    case $fs in
    9p) mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 nine /mnt ;;
    *) mount -t virtiofs fs /mnt ;;
    esac 2>/dev/null || continue
    row $fs-read-1M iobench /mnt/big r seq 1048576 128
    row $fs-write-1M iobench /mnt/new w seq 1048576 64
    row $fs-tree sh -c 's=$(cut -d" " -f1 /proc/uptime); find /mnt/tree -type f | xargs cat >/dev/null; e=$(cut -d" " -f1 /proc/uptime); awk "BEGIN{printf \"%.0f files/s\", 2000/($e-$s+0.005)}"'
    umount /mnt
done
echo ALLDONE
poweroff -f
I
chmod +x "$out/root/init"
(cd "$out/root" && find . | cpio -o -H newc --quiet) >"$out/root.cpio"
cat "$out/root.cpio" "$dir/devices.cpio" >"$out/initrd"
truncate -s 1G "$out/disk"
dd if=/dev/urandom of="$out/disk" bs=1M count=1024 conv=notrunc status=none
dd if=/dev/urandom of="$out/share/big" bs=1M count=128 status=none
for i in $(seq 2000); do head -c 3000 "$out/share/big" >"$out/share/tree/$i"; done

cmdline="console=ttyS0 quiet"
for _ in $(seq "$reps"); do
    timeout 300 "$MIMEO" run --engine bt -m 512M --kernel "$dir/vmlinuz" --initrd "$out/initrd" --append "$cmdline" \
        --disk "$out/disk" --share "$out/share:fs" --share "$out/share:nine,9p" </dev/null >>"$logs/mimeo.log" 2>&1 || true
    timeout 300 qemu-system-x86_64 -accel tcg -m 512 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
        -kernel "$dir/vmlinuz" -initrd "$out/initrd" -append "$cmdline" \
        -drive "file=$out/disk,if=none,id=d,format=raw,cache=writeback" -device virtio-blk-pci,drive=d \
        -virtfs "local,path=$out/share,mount_tag=nine,security_model=none" </dev/null >>"$logs/qemu.log" 2>&1 || true
done
python3 - "$logs/mimeo.log" "$logs/qemu.log" <<'P'
import re, sys
def load(path):
    best = {}
    for line in open(path, errors="replace"):
        m = re.match(r"ROW (\S+) (.*)", line.strip())
        if not m: continue
        values = re.findall(r"([\d.]+) (\S+)", m[2])
        if not values: continue
        # Operations a second for small blocks, bytes a second for large ones.
        v, u = values[1] if "4K" in m[1] else values[0]
        if float(v) > best.get(m[1], (0, u))[0]: best[m[1]] = (float(v), u)
    return best
a, b = (load(p) for p in sys.argv[1:])
print("| row | unit | mimeo-bt | qemu-tcg | faster |\n|---|---|---|---|---|")
for n, (v, u) in a.items():
    # QEMU has no virtio-fs of its own: beside its 9p.
    q = b.get(n) or b.get(n.replace("virtiofs", "9p"))
    print(f"| {n} | {u} | {v:.4g} | {q[0]:.4g} | {v / q[0]:.2f}x |" if q else f"| {n} | {u} | {v:.4g} | - | - |")
P
