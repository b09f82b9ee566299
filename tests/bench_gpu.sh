#!/usr/bin/env bash
# All that is measured on one GPU of 80 GB, in under ten minutes, with random weights at real shapes:
# codes per second, the share of the memory roofline, MFU, peak memory, stock generate with guidance,
# the reference pattern of training. Lines and JSON go to a folder:
#
#     tests/bench_gpu.sh bench-gpu [vllm-env/bin/python]
#
# A part that needs too long or fails is cut off and named at the end; the others go on.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?a folder for the results}
engine=${2:-}
mkdir -p "$out"
failed=""
part() { # seconds, name, words of python -m
  local limit=$1 name=$2
  shift 2
  echo "== $name"
  timeout "$limit" python -m "$@" --json "$out/$name.json" 2>&1 | tee "$out/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed="$failed $name($status)"
}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.csv"
part 100 sampling-janus-1b tests.bench_sampling --shape janus-1b --batch 1 8 64 --rounds 2
part 150 sampling-emu3-8b tests.bench_sampling --shape emu3-8b --batch 1 16 --rounds 1
part 70 sampling-chameleon-7b tests.bench_sampling --shape chameleon-7b --batch 8 --rounds 1
part 80 training-janus-pro-1b tests.bench_training --shape janus-pro-1b-full --rounds 3
part 90 training-emu3-8b tests.bench_training --shape emu3-8b-lora --rounds 2
if [ -n "$engine" ]; then
  part 100 engines tests.bench_engines --python "$engine" --batch 1 8 64 --rounds 2
fi
[ -z "$failed" ] || echo "cut off or failed, with the exit status:$failed"
[ -z "$failed" ]
