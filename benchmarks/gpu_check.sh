#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without a network: build for the card that is there, install, the tests of
# the cuda and triton backends, waits, graphs and streams, compute-sanitizer, the benchmarks. Less than ten minutes: a
# part that would run longer is stopped, and the benchmarks get what is left. A short table comes last; it, the logs and
# the CSV of the benchmarks lie in $OUT.
#
#   benchmarks/gpu_check.sh          PYTHON (python3), OUT (build/gpu_check), SECONDS_SCALE (1: times all limits)
#   benchmarks/gpu_check.sh --fake   without a GPU: what can run does, to test this script; GPU tests skip
#
# Exit status 1: a part failed, or did not end in its time (but for the benchmarks).
set -uo pipefail
cd "$(dirname "$0")/.." || exit

python=${PYTHON:-python3}
out=${OUT:-build/gpu_check}
scale=${SECONDS_SCALE:-1}
fake=0
[ "${1:-}" = --fake ] && fake=1
# cmake and ninja of a virtual environment lie beside its interpreter.
PATH=$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH
export PATH PYTHONUNBUFFERED=1
mkdir -p "$out"
out=$(cd "$out" && pwd)
logs=$(mktemp -d)
table=$out/table.txt
: >"$table"
failed=0
finish=$((570 * scale)) # seconds from the start
kept=$((90 * scale))    # of them for the benchmarks

# The table and the logs are there however this ends.
report() {
    tar -czf "$out/logs.tar.gz" -C "$logs" .
    rm -rf "$logs"
    echo
    cat "$table"
    [ -f "$out/results.csv" ] && echo "rows of results: $(($(wc -l <"$out/results.csv") - 1))"
    return 0
}
trap report EXIT

# row NAME STATUS SECONDS TEXT
row() { printf '%-12s %-6s %6s  %s\n' "$1" "$2" "$3" "$4" | tee -a "$table"; }

# part NAME SECONDS COMMAND…: run it within its time, keep its output, note how it ended.
part() {
    local name=$1 limit=$(($2 * scale)) begin=$SECONDS left=$((finish - kept - SECONDS)) log=$logs/$1.log status last
    shift 2
    [ $limit -gt $left ] && limit=$left
    if [ $limit -lt 5 ]; then
        failed=1
        row "$name" FAIL - "no time was left"
        return 1
    fi
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
    status=$?
    last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr -d '=' | cut -c 1-90)
    case $status in
    0) row "$name" ok "$((SECONDS - begin)) s" "$last" ;;
    124 | 137)
        if [ "$name" = bench ]; then # has written what it has measured
            row "$name" part "$((SECONDS - begin)) s" "the time was over"
            return 0
        fi
        row "$name" FAIL "$((SECONDS - begin)) s" "stopped; last: $last"
        ;;
    *) row "$name" FAIL "$((SECONDS - begin)) s" "$last" ;;
    esac
    [ $status -eq 0 ] && return 0
    failed=1
    # A stopped pytest has no summary.
    grep -E '(FAILED|ERROR) .*::' "$log" | sed 's/ - .*//' | sort -u | head -n 5 | cut -c 1-110 | sed 's/^/    /' | tee -a "$table"
    return 1
}

skipped() { row "$1" - - "$2"; }

# 1. What is here, and the one architecture to build for.
if [ $fake = 1 ]; then
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
# A test whose backend cannot run is skipped: that both can is asked first.
can_run='
import sys
from gflv2.ops import backends
reasons = {name: backends.unavailable(name, "cuda") for name in ("cuda", "triton")}
print("cuda and triton run here" if not any(reasons.values()) else reasons)
sys.exit(any(reasons.values()))'
if [ $fake = 0 ]; then
    part backends 60 "$python" -c "$can_run" || exit 1
fi

# 3. The tests of both GPU backends, and nothing that runs without a GPU as well.
pytest=("$python" -m pytest -v -p no:cacheprovider --no-header -W ignore)
export GFLV2_SIMT_LIBRARY=""
parallel=()
"$python" -c "import xdist" 2>/dev/null && parallel=(-n "$(nproc)")
selection=(-m "gpu or not slow" tests/ops)
if [ $fake = 1 ]; then
    export GFLV2_TEST_BACKENDS=cpu
    part device-tests 180 "${pytest[@]}" tests/gpu
    part tests-cpu 240 "${pytest[@]}" "${parallel[@]}" -k test_topk "${selection[@]}"
else
    export GFLV2_TEST_BACKENDS=cuda,triton
    part device-tests 150 "${pytest[@]}" tests/gpu
    export GFLV2_TEST_BACKENDS=cuda GFLV2_TEST_EXAMPLES=50
    part tests-cuda 120 "${pytest[@]}" "${parallel[@]}" "${selection[@]}"
    # Nearly every example compiles kernels of its own.
    export GFLV2_TEST_BACKENDS=triton GFLV2_TEST_EXAMPLES=2
    part tests-triton 150 "${pytest[@]}" "${parallel[@]}" "${selection[@]}"
fi

# 4. Memory accesses, races, barriers: the tests of memory go through every layout and dtype. torch's caching allocator
#    would hide the ends of its blocks; its own kernels are left out.
if command -v compute-sanitizer >/dev/null && [ $fake = 0 ]; then
    export GFLV2_TEST_BACKENDS=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1
    ours=(--error-exitcode 9 --target-processes all)
    case $(compute-sanitizer --help 2>&1) in
    *--kernel-regex*kns*) ours+=(--kernel-regex kns=gflv2) ;;
    esac
    for tool in memcheck racecheck synccheck; do
        part "$tool" 60 compute-sanitizer --tool "$tool" "${ours[@]}" "${pytest[@]}" -k "TestMemory and cuda" tests/ops
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    skipped sanitizer "compute-sanitizer is not here, or there is no GPU"
fi

# 5. The benchmarks, with what is left of the time: every case writes its rows when it is done.
kept=0
bench=("$python" -m pytest -c benchmarks/pytest.ini benchmarks/bench.py --output "$out/results.csv" --no-peers)
if [ $fake = 1 ]; then
    part bench 120 "${bench[@]}" --tiny --devices cpu --seconds 0.1 --runs 1 --compile none -k atss
else
    part bench 560 "${bench[@]}" --devices cuda --seconds 1 --runs 3 --compile none --no-curves
fi

exit $failed
