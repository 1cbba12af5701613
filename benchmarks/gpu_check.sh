#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without a network: build for the card that is there, install, the tests of
# the cuda and triton backends, waits, graphs and streams, compute-sanitizer, the benchmarks. About ten minutes at most;
# a short table comes last, full logs and the CSV of the benchmarks lie in $OUT.
#
#   benchmarks/gpu_check.sh          PYTHON (python3), OUT (build/gpu_check), SECONDS_SCALE (1: times all limits)
#   benchmarks/gpu_check.sh --fake   without a GPU: what can run does, to test this script; GPU tests skip
#
# Exit status 1: a part failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

python=${PYTHON:-python3}
out=${OUT:-build/gpu_check}
scale=${SECONDS_SCALE:-1}
fake=0
[ "${1:-}" = --fake ] && fake=1
mkdir -p "$out"
out=$(cd "$out" && pwd)
table=$out/table.txt
: >"$table"
failed=0
export PYTHONUNBUFFERED=1

# part NAME SECONDS COMMAND…: run it within its time, keep its output, note how it ended.
part() {
    local name=$1 limit=$(($2 * scale)) begin=$SECONDS status last
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    case $status in
    0) ;;
    124 | 137) echo "stopped after $limit s" >>"$out/$name.log" ;;
    esac
    [ $status -eq 0 ] || failed=1
    last=$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -n 1 | tr -d '=' | cut -c 1-90)
    printf '%-10s %-6s %4d s  %s\n' "$name" "$([ $status -eq 0 ] && echo ok || echo "FAIL")" $((SECONDS - begin)) "$last" |
        tee -a "$table"
}

# skipped NAME WHY
skipped() { printf '%-10s %-6s %4s    %s\n' "$1" - - "$2" | tee -a "$table"; }

# 1. What is here, and the one architecture to build for.
if [ $fake = 1 ]; then
    architecture=90
    skipped device "no GPU: a rehearsal"
else
    architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
    part device 30 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi

# 2. Build and install; Python files are used from here (an editable install needs no network either).
if [ $fake = 1 ]; then
    skipped build "left as it is"
else
    export GFLV2_CUDA_ARCHS=$architecture-real GFLV2_BUILD_NATIVE=1 GFLV2_BUILD_CUDA=1
    part build 240 "$python" -m pip install --no-build-isolation --no-deps --no-index -e .
fi
part env 60 "$python" -m gflv2.env

# 3. The tests. Both GPU backends, and nothing that runs without a GPU as well.
export GFLV2_TEST_BACKENDS=cuda,triton GFLV2_SIMT_LIBRARY="" GFLV2_TEST_EXAMPLES=${GFLV2_TEST_EXAMPLES:-50}
pytest=("$python" -m pytest -q -p no:cacheprovider --no-header -W ignore)
parallel=()
"$python" -c "import xdist" 2>/dev/null && [ $fake = 0 ] && parallel=(-n 4)
selection=(-m "gpu or not slow")
[ $fake = 1 ] && selection+=(-k test_topk) && GFLV2_TEST_BACKENDS=cpu
part device-tests 180 "${pytest[@]}" tests/gpu
part tests 240 "${pytest[@]}" "${parallel[@]}" "${selection[@]}" tests/ops

# 4. Memory accesses and races. torch's caching allocator would hide the ends of its blocks.
if command -v compute-sanitizer >/dev/null && [ $fake = 0 ]; then
    small=("${pytest[@]}" tests/ops/test_host.py -k "twice_the_same_bits and cuda")
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    part memcheck 90 compute-sanitizer --tool memcheck --error-exitcode 9 --target-processes all "${small[@]}"
    part racecheck 90 compute-sanitizer --tool racecheck --error-exitcode 9 --target-processes all "${small[@]}"
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    skipped sanitizer "compute-sanitizer is not here, or there is no GPU"
fi

# 5. The benchmarks that there are, with what is left of the time.
if [ -f benchmarks/bench.py ]; then
    bench=("$python" -m pytest -c benchmarks/pytest.ini benchmarks/bench.py --output "$out/results.csv" --no-peers)
    if [ $fake = 1 ]; then
        part bench 120 "${bench[@]}" --tiny --devices cpu --seconds 0.1 --runs 1 --compile none -k atss
    else
        left=$((560 * scale - SECONDS))
        part bench $((left > 60 ? left / scale : 60)) "${bench[@]}" --devices cuda --seconds 1 --runs 3 --compile none --no-curves
    fi
else
    skipped bench "there are none"
fi

echo
cat "$table"
[ -f "$out/results.csv" ] && echo "rows of results: $(($(wc -l <"$out/results.csv") - 1))"
exit $failed
