#!/bin/bash
# bench/all.sh [WORKLOADS]: the rows (default: boot and integer) on Mimeo's engines, QEMU TCG, Bochs and
# natively in one run on this machine, and the table in docs/performance.md.
# Needs root for the native run (a chroot) and Debian's qemu-system-x86, bochs, isolinux, xorriso where
# those are to be compared; what is not installed is left out and said.
# Environment: GUEST (where the guest is built; kept between runs), REPS (3), BENCH_T (0.3), ENGINES, TABLE
# (where the table goes: docs/performance.md).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
export GUEST=${GUEST:-${XDG_CACHE_HOME:-$HOME/.cache}/mimeo/bench}
export REPS=${REPS:-3} BENCH_T=${BENCH_T:-0.3}
export WORKLOADS=${1:-boot,@int}
engines=${ENGINES:-interp bt qemu bochs}
table=${TABLE:-$root/docs/performance.md}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

[ -f "$GUEST/kernel" ] || "$here/build-guest.sh" "$GUEST"
cargo build --release --manifest-path "$root/Cargo.toml"
mimeo=${CARGO_TARGET_DIR:-$root/target}/release/mimeo

files=()
run() { # NAME COMMAND...
    local name=$1
    shift
    OUT=$out/$name.csv "$here/run.sh" "$name" -- "$@" && files+=("$out/$name.csv")
}
for engine in $engines; do
    case $engine in
    interp | bt)
        run "mimeo-$engine" "$mimeo" run --engine "$engine" -m 512M --no-reboot \
            --kernel {kernel} --initrd {initrd} --append {cmdline}
        ;;
    qemu)
        command -v qemu-system-x86_64 >/dev/null || { echo "no QEMU here: left out"; continue; }
        run qemu-tcg qemu-system-x86_64 -accel tcg -m 512 -nodefaults -no-user-config -display none \
            -serial stdio -no-reboot -kernel {kernel} -initrd {initrd} -append {cmdline}
        ;;
    bochs)
        command -v bochs >/dev/null || { echo "no Bochs here: left out"; continue; }
        run bochs "$here/engines/bochs.sh" {kernel} {initrd} {cmdline} {serial}
        ;;
    *)
        echo "there is no engine $engine" >&2
        exit 2
        ;;
    esac
done
"$here/native.sh" "$GUEST" "$out/native.csv" "$REPS" "${WORKLOADS#boot,}"
files+=("$out/native.csv")

{
    echo "# Performance"
    echo
    echo "Made by \`bench/all.sh $WORKLOADS\` on $(date -u +%F), $(nproc) CPUs:" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), Linux $(uname -r); best of $REPS." \
        "Times relative to native: lower is better. \`bench/README.md\` says how they are measured."
    echo
    python3 "$here/compare.py" --md "${files[@]}"
} >"$table"
echo "written: $table"
