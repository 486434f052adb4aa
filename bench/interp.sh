#!/bin/bash
# bench/interp.sh: the interpreter beside Debian's Bochs and native, integer and boot rows, in one run;
# the table in docs/performance-interp.md. Needs what bench/all.sh needs, and takes its environment.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
export ENGINES=${ENGINES:-interp bochs} REPS=${REPS:-1} BENCH_T=${BENCH_T:-0.1}
export TABLE=${TABLE:-$root/docs/performance-interp.md}
exec "$here/all.sh" "${1:-boot,@int}"
