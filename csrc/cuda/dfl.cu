// `dfl` on CUDA: one row a thread. The rows of a block travel through shared memory, so that global memory sees whole
// lines whichever dimension is the inner one; the exponentials, then the gradients, take the place of the logits there.
// The arithmetic is gflv2/dfl.hpp's.

#include "cuda/dtypes.cuh"
#include "cuda/loss_reduction.cuh"
#include "cuda/matrix_rows.cuh"
#include "gflv2/api.hpp"
#include "gflv2/dfl.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {
namespace {

template <class T, int BINS, bool BACKWARD>
GFLV2_KERNEL(threads)
dfl_kernel(GFLV2_CONSTANT DflArguments a, std::uint32_t* counter) {
    GFLV2_SHARED_MEMORY(float, tile);  // (threads, pitch)
    const int bins = BINS > 0 ? BINS : a.bins;

    // 1. The block's rows to shared memory.
    const std::int64_t first = std::int64_t(blockIdx.x) * threads, left = a.rows - first;
    const std::uint32_t rows = left < threads ? std::uint32_t(left) : threads;
    const T* const from = static_cast<const T*>(a.logits) + first * a.row_stride;
    matrix_to_shared<threads, BINS>(from, rows, bins, a.row_stride, a.bin_stride, tile);
    __syncthreads();

    // 2. One row a thread.
    float sum = 0;
    if (threadIdx.x < rows) {
        float* const row = tile + threadIdx.x * pitch_of(bins);
        const std::int64_t index = first + threadIdx.x;
        const DflTarget<float> target = dfl_target<float>(static_cast<const float*>(a.target)[index], bins);
        if constexpr (BACKWARD) {
            const DflRow<float> r = dfl_row<BINS, float>(row, bins, target, [&](int b, float e) { row[b] = e; });
            const float over_total = 1.0f / r.total, upstream = upstream_of_row(a.reduction, index);
            each<BINS>(bins, [&](int b) { row[b] = dfl_gradient<float>(b, row[b], over_total, target, upstream); });
        } else {
            const DflRow<float> r = dfl_row<BINS, float>(row, bins, target, [](int, float) {});
            sum = reduced_row(a.reduction, index, dfl_loss<float>(r.total, r.chosen));
        }
    }

    // 3. Backward: back to global memory. Forward: the total.
    if constexpr (BACKWARD) {
        __syncthreads();
        T* const to = static_cast<T*>(a.grad_logits) + first * a.grad_row_stride;
        matrix_from_shared<threads, BINS>(to, rows, bins, a.grad_row_stride, a.grad_bin_stride, tile);
    } else {
        total_over_blocks<threads>(a.reduction, a.workspace, sum, tile, counter);
    }
}

template <class T, bool BACKWARD> void run(const DflArguments& a, void* stream) {
    const auto kernel = with_bins(a.bins, [](auto bins) { return dfl_kernel<T, decltype(bins)::value, BACKWARD>; });
    const std::uint32_t blocks = blocks_of_rows<threads>(a.rows);
    const auto start = [&](std::uint32_t* counter) {
        launch(kernel, blocks, threads, threads * pitch_of(a.bins) * sizeof(float), stream, a, counter);
    };
    launch_loss<threads, BACKWARD>(a.reduction, a.workspace, blocks, stream, start);
}

}  // namespace

void dfl_forward(const DflArguments& a, Place place) {
    run_as("dfl", a.dtype, place, [&](auto zero) { run<decltype(zero), false>(a, place.stream); });
}
void dfl_backward(const DflArguments& a, Place place) {
    run_as("dfl", a.dtype, place, [&](auto zero) { run<decltype(zero), true>(a, place.stream); });
}

std::size_t dfl_workspace(std::int64_t rows) { return total_workspace(blocks_of_rows<threads>(rows)); }

}  // namespace gflv2::cuda
