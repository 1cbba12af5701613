#!/usr/bin/env bash
# First contact with a GPU, on a machine without a network, in ten minutes: what teaches most comes first, and one illegal
# access ends no more than its own process. Seven steps: the build, while Triton's kernels run; each CUDA kernel; what ncu
# counts, for the forecast; times; graphs, streams and waits; compute-sanitizer; the tests, with what is left of the time.
# Everything is written into $OUT as it comes: a line of table.txt and a log for each part, results.csv, ncu.csv.
#
#   benchmarks/gpu_check.sh          PYTHON (python3; with the extras train and test), OUT (build/gpu_check),
#                                    SECONDS_SCALE (1: times all limits)
#   benchmarks/gpu_check.sh --fake   without a GPU: what can run does, to test this script; GPU tests skip. Before Triton
#                                    3.7 its interpreter needs numpy below 2.4.
#
# Exit status 1: a part failed, or did not end in its time (but for the benchmarks and the last tests).
set -uo pipefail
cd "$(dirname "$0")/.." || exit

python=${PYTHON:-python3}
out=${OUT:-build/gpu_check}
scale=${SECONDS_SCALE:-1}
fake=0
[ "${1:-}" = --fake ] && fake=1
# cmake and ninja of a virtual environment lie beside its interpreter.
PATH=$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH
export PATH PYTHONUNBUFFERED=1 GFLV2_SIMT_LIBRARY=""
mkdir -p "$out/logs"
out=$(cd "$out" && pwd)
table=$out/table.txt
: >"$table"
rm -f "$out/failed"
finish=$((570 * scale)) # seconds from the start
together=4              # processes at a time

# row NAME STATUS SECONDS TEXT
row() { printf '%-26s %-6s %6s  %s\n' "$1" "$2" "$3" "$4" | tee -a "$table"; }
skipped() { row "$1" - - "$2"; }

# part NAME SECONDS COMMAND…: run it within its time, keep its output, note how it ended. May run beside others.
part() {
    local name=$1 limit=$(($2 * scale)) begin=$SECONDS left=$((finish - SECONDS)) log="$out/logs/${1// /-}.log" status last
    shift 2
    [ $limit -gt $left ] && limit=$left
    if [ $limit -lt 5 ]; then
        case $name in bench* | tests*) ;; *) touch "$out/failed" ;; esac
        row "$name" - - "no time was left"
        return 1
    fi
    timeout --kill-after=5 "$limit" "$@" >"$log" 2>&1
    status=$?
    last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr -d '=' | cut -c 1-90)
    case $status in
    0) row "$name" ok "$((SECONDS - begin)) s" "$last" ;;
    124 | 137)
        case $name in
        bench* | tests*) # have written what they have
            row "$name" part "$((SECONDS - begin)) s" "the time was over; last: $last"
            return 0
            ;;
        esac
        row "$name" FAIL "$((SECONDS - begin)) s" "stopped; last: $last"
        ;;
    *) row "$name" FAIL "$((SECONDS - begin)) s" "$last" ;;
    esac
    [ $status -eq 0 ] && return 0
    touch "$out/failed"
    # A stopped pytest has no summary.
    grep -E '(FAILED|ERROR) .*::' "$log" | sed 's/ - .*//' | sort -u | head -n 5 | cut -c 1-110 | sed 's/^/    /' | tee -a "$table"
    return 1
}

# smoke NAME SECONDS COMMAND…: one process for each operation, which stands for the word OP; some at a time.
smoke() {
    local name=$1 limit=$2 op word command running=()
    shift 2
    for op in "${operations[@]}"; do
        command=()
        for word in "$@"; do
            [ "$word" = OP ] && word=$op
            command+=("$word")
        done
        part "$name $op" "$limit" "${command[@]}" &
        running+=($!)
        if [ ${#running[@]} -ge $together ]; then
            wait "${running[0]}"
            running=("${running[@]:1}")
        fi
    done
    wait "${running[@]}"
}

# 0. What is here.
operations=(gfl_targets gfl_loss dgqp qfl focal atss integral decode head dgqp_statistics dfl giou distribution_kl)
operations+=(ciou task_aligned dynamic_soft_label)
if [ $fake = 1 ]; then
    skipped device "no GPU: a rehearsal"
    operations=(integral decode)
else
    architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
    part device 30 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi

# 1. The build of the one architecture in the background; Triton's kernels meanwhile. Python files are used from here.
if [ $fake = 1 ]; then
    skipped build "left as it is"
    TRITON_INTERPRET=1 smoke triton 120 "$python" -m tests.gpu.smoke OP --backend triton --small
else
    export GFLV2_CUDA_ARCHS=$architecture-real GFLV2_BUILD_NATIVE=1 GFLV2_BUILD_CUDA=1
    part build 240 "$python" -m pip install --no-build-isolation --no-deps --no-index -e . &
    build=$!
    smoke triton 60 "$python" -m tests.gpu.smoke OP --backend triton
    wait $build
fi
part env 60 "$python" -m gflv2.env

# 2. The CUDA kernels.
if [ $fake = 1 ]; then
    smoke cpu 60 "$python" -m tests.gpu.smoke OP --backend cpu --small
else
    smoke cuda 45 "$python" -m tests.gpu.smoke OP --backend cuda
fi

# 3. What ncu counts: one launch a kernel, into the forecast's table.
metrics=$("$python" -m tests.gpu.ncu --metrics)
if command -v ncu >/dev/null && [ $fake = 0 ]; then
    options=(--clock-control none --profile-from-start off --csv --page raw --print-units base --print-kernel-base mangled)
    counted=()
    for backend in cuda triton; do
        part "ncu $backend" 60 ncu "${options[@]}" --metrics "$metrics" "$python" -m tests.gpu.workload --backend $backend &&
            counted+=("$out/logs/ncu-$backend.log")
    done
    part "ncu table" 20 "$python" -m tests.gpu.ncu "${counted[@]}" --output "$out/ncu.csv" --device "$device"
else
    skipped ncu "ncu is not here, or there is no GPU"
fi

# 4. Times, the head first: every case writes its rows when it is done.
bench=("$python" -m pytest -c benchmarks/pytest.ini benchmarks/bench.py --output "$out/results.csv" --no-peers --compile none)
if [ $fake = 1 ]; then
    part "bench head" 120 "${bench[@]}" --tiny --devices cpu --seconds 0.1 --runs 1 -k head
else
    bench+=(--devices cuda --seconds 1 --runs 3 --no-curves)
    part "bench head" 60 "${bench[@]}" -k "cuda-head"
    part "bench rest" 90 "${bench[@]}" -k "not cuda-head"
fi

# 5. Capture, streams, waits; a test that hangs ends its own process, and no other.
pytest=("$python" -m pytest -v -p no:cacheprovider --no-header -W ignore)
parallel=()
"$python" -c "import xdist" 2>/dev/null && parallel=(-n "$together")
GFLV2_TEST_SECONDS=30 part device-tests 90 "${pytest[@]}" "${parallel[@]}" -m gpu tests/gpu

# 6. Memory accesses and races, in the small calls. torch's caching allocator would hide the ends of its blocks; its own
#    kernels are left out.
if command -v compute-sanitizer >/dev/null && [ $fake = 0 ]; then
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    ours=(--error-exitcode 9)
    case $(compute-sanitizer --help 2>&1) in
    *--kernel-regex*kns*) ours+=(--kernel-regex kns=gflv2) ;;
    esac
    for tool in memcheck racecheck; do
        smoke $tool 40 compute-sanitizer --tool $tool "${ours[@]}" "$python" -m tests.gpu.smoke OP --backend cuda --small
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    skipped sanitizer "compute-sanitizer is not here, or there is no GPU"
fi

# 7. The tests of both backends, with what is left.
export GFLV2_TEST_EXAMPLES=10
if [ $fake = 1 ]; then
    GFLV2_TEST_BACKENDS=cpu part tests 240 "${pytest[@]}" "${parallel[@]}" -k test_topk -m "gpu or not slow" tests/ops
else
    for backend in cuda triton; do
        GFLV2_TEST_BACKENDS=$backend part "tests $backend" 120 "${pytest[@]}" "${parallel[@]}" -m "gpu or not slow" tests/ops
    done
fi

echo
cat "$table"
[ -f "$out/results.csv" ] && echo "rows of results: $(($(wc -l <"$out/results.csv") - 1))"
[ ! -e "$out/failed" ]
