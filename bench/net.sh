#!/bin/bash
# bench/net.sh: one TCP connection's throughput and request rate between guest and host, over the user network and over a
# tap interface, on Mimeo's translator and on QEMU TCG in one run, and the table in docs/performance-net.md.
# Needs gcc, cpio, busybox-static, qemu-system-x86, iproute2; no root where user namespaces and /dev/net/tun are there.
# Environment: GUEST (build-guest.sh's directory: kernel and its modules), SECS a workload (3), REPS (3), ENGINES, NETS.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); root=$(dirname "$here")
export GUEST=${GUEST:-${XDG_CACHE_HOME:-$HOME/.cache}/mimeo/bench} SECS=${SECS:-3} REPS=${REPS:-3}
export ENGINES=${ENGINES:-bt qemu} NETS=${NETS:-user tap}
if [ -z "${INSIDE:-}" ]; then
    [ -f "$GUEST/kernel" ] || "$here/build-guest.sh" "$GUEST"
    [ -n "${MIMEO:-}" ] || cargo build --release --manifest-path "$root/Cargo.toml"
    export MIMEO=${MIMEO:-${CARGO_TARGET_DIR:-$root/target}/release/mimeo}
    out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
    export INSIDE=$out
    unshare --user --map-root-user --net "$0"
    {
        echo "# Network performance"
        echo
        echo "Made by \`bench/net.sh\` on $(date -u +%F), $(nproc) CPUs:" \
            "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), Linux $(uname -r); best of $REPS." \
            "One TCP connection between the guest and a server on the host; send and recv are the guest's," \
            "rr is requests of 64 bytes, one at a time. Higher is better. The machine's load average afterwards:" \
            "$(cut -d' ' -f1 /proc/loadavg) (what runs beside it takes from all rows, most from rr)."
        echo
        cat "$out/table"
    } >"$root/docs/performance-net.md"
    echo "written: docs/performance-net.md"
    exit
fi
out=$INSIDE
r=$out/root; mkdir -p "$r"/{bin,modules,proc,dev}
gcc -O2 -static -o "$r/bin/netbench" "$here/guest/netbench.c"
cp -L "$(command -v busybox)" "$r/bin/busybox"; ln -s busybox "$r/bin/sh"; cp "$here/guest/net-init.sh" "$r/init"; chmod +x "$r/init"
modules=$(find "$GUEST/kx" /lib/modules -maxdepth 3 -type d -path '*/lib/modules/*' 2>/dev/null | head -1 || true)
for m in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net; do
    f=$(find "$modules" -name "$m.ko*" | head -1 || true); [ -n "$f" ] || continue
    case $f in *.xz) xz -dc "$f" >"$r/modules/$m.ko" ;; *) cp "$f" "$r/modules/$m.ko" ;; esac
    echo "$m.ko" >>"$r/modules/order"
done
(cd "$r" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initrd"
ip link set lo up
ip tuntap add tapb mode tap; ip addr add 10.8.0.1/24 dev tapb; ip link set tapb up
"$r/bin/netbench" serve 9009 & server=$!; trap 'kill $server' EXIT
run() { # ENGINE NET
    local cmdline="console=ttyS0 loglevel=3 reboot=t panic=-1 secs=$SECS" net
    case $2 in user) cmdline+=" addr=10.0.2.15 peer=10.0.2.2" ;; tap) cmdline+=" addr=10.8.0.2 peer=10.8.0.1" ;; esac
    case $1-$2 in
    qemu-user) net="-netdev user,id=n" ;;
    qemu-tap) net="-netdev tap,id=n,ifname=tapb,script=no,downscript=no" ;;
    *-user) net="--net user --allow-host" ;;
    *-tap) net="--net tap=tapb" ;;
    esac
    # shellcheck disable=SC2086
    case $1 in
    qemu) timeout 300 qemu-system-x86_64 -accel tcg -m 512 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
        -kernel "$GUEST/kernel" -initrd "$out/initrd" -append "$cmdline" $net -device virtio-net-pci,netdev=n </dev/null ;;
    *) timeout 300 "$MIMEO" run --engine "$1" -m 512M --no-reboot --kernel "$GUEST/kernel" --initrd "$out/initrd" --append "$cmdline" $net </dev/null ;;
    esac | tr -d "\r" | awk -v e="$1" -v n="$2" '$1 == "BENCH" { print e, n, $2, $3, $4; fflush() }' | tee -a "$out/rows"
}
for rep in $(seq "$REPS"); do for net in $NETS; do for engine in $ENGINES; do run "$engine" "$net"; done; done; done
awk '
    { k = $2 " " $3; if (!(k in unit)) { order[++n] = k; unit[k] = $5 } if ($4 > best[k, $1]) best[k, $1] = $4 }
    function show(v, u) { return u == "B/s" ? sprintf("%.1f MB/s", v / 1e6) : sprintf("%.0f /s", v) }
    END {
        print "| network | row | mimeo bt | QEMU TCG | bt / QEMU |"; print "|---|---|---|---|---|"
        for (i = 1; i <= n; i++) { k = order[i]; split(k, p, " "); b = best[k, "bt"]; q = best[k, "qemu"]
            print "| " p[1] " | " substr(p[2], 5) " | " show(b, unit[k]) " | " show(q, unit[k]) " | " (q ? sprintf("%.1f", b / q) : "-") " |" }
    }' "$out/rows" >"$out/table"
cat "$out/table"
