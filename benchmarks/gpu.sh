#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measure on a GPU: latency, throughput, precisions, memory, and the tests that need CUDA.
#
#     benchmarks/gpu.sh [OUT]                          # at most 9 minutes on an H100 or H200
#     DEVICE=cpu SIZE=tiny LARGE=tiny benchmarks/gpu.sh   # try each part without a GPU
#
# Needs Python with torch, transformers and this package's other requirements, without ROS. The
# most important part comes first; each part has a time limit, and one that fails does not end
# the others. Writes JSON, plots and a log of each part into OUT. Exit status: parts that failed.

set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
device=${DEVICE:-cuda} size=${SIZE:-7b} large=${LARGE:-13b}
precisions=bf16
if [[ $device != cpu ]]; then precisions="bf16 int8 nf4"; fi
mkdir -p "$out"
failed=0

part() {  # name, limit in seconds, command
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        echo "$name: $((SECONDS - start)) s"
    else
        echo "$name: FAILED after $((SECONDS - start)) s, see $out/$name.log"
        tail -n 3 "$out/$name.log"
        failed=$((failed + 1))
    fi
}

latency() { python benchmarks/latency.py --device "$device" --out "$out" --json "$@"; }
export -f latency
export device out

first=${precisions%% *}
part "latency_$size" 150 bash -c "latency --size $size --precision $first --rounds 2"
part "throughput_$size" 90 python benchmarks/throughput.py --size "$size" --device "$device" \
    --precision "$first" --rounds 2 --out "$out"
grep '   8 at once' "$out/throughput_$size.log" # at most twice the time of one
for precision in ${precisions#"$first"}; do
    part "latency_${size}_$precision" 80 \
        bash -c "latency --size $size --precision $precision --rounds 1 --no-upstream"
done
part "latency_$large" 100 bash -c "latency --size $large --precision $first --rounds 1 --no-upstream"
part cuda_tests 90 python -m pytest -q -p no:launch_testing test/test_cuda.py
exit "$failed"
