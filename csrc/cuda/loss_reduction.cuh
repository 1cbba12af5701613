// Losses of rows to the result on CUDA, and the upstream gradient back to the rows: csrc/cpu/loss_reduction.hpp for a
// GPU.
//
// A total is formed in two stages. Every block leaves one partial sum in the workspace, place blockIdx.x; one block adds
// them up in double: the one that ends last, or one of a second launch where there is no counter for that, or too many
// blocks. The order of both sums depends on the shapes alone.
//
//   forward kernel   sum += reduced_row(r, row, loss) for each of the thread's rows; at its end
//                    total_over_blocks<THREADS>(…, counter)
//   backward kernel  upstream_of_row(r, row)
//   their launches   launch_loss<THREADS, BACKWARD>(…)
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "cuda/block_sum.cuh"
#include "gflv2/api/reduction.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {

__device__ inline float row_weight(const Reduction& r, std::int64_t row) {
    return r.weight ? static_cast<const float*>(r.weight)[row] : 1.0f;
}

// The divisors of the total together.
__device__ inline double total_divisor(const Reduction& r) {
    return r.factor ? r.divisor * double(*static_cast<const float*>(r.factor)) : r.divisor;
}

// Writes the loss of a row where no total is wanted. Returns what it adds to the total.
__device__ inline float reduced_row(const Reduction& r, std::int64_t row, float loss) {
    loss *= row_weight(r, row);
    if (!r.total) static_cast<float*>(r.out)[row] = loss;
    return loss;
}

// ∂L/∂(loss of a row).
__device__ inline float upstream_of_row(const Reduction& r, std::int64_t row) {
    const float* grad = static_cast<const float*>(r.grad_out);
    return (r.total ? float(double(*grad) / total_divisor(r)) : grad[row]) * row_weight(r, row);
}

// Second stage. `scratch` has THREADS places.
template <unsigned THREADS>
__device__ inline void write_total(const Reduction& r, const float* partial, std::uint32_t count, double* scratch) {
    const double sum = sums_of_partials<1, THREADS>(partial, count, scratch);
    if (threadIdx.x == 0) *static_cast<float*>(r.out) = float(sum / total_divisor(r));
}

// Both stages, called by all threads of a block. `scratch` has THREADS doubles, free before and after.
template <unsigned THREADS>
__device__ inline void total_over_blocks(const Reduction& r, void* workspace, float sum, void* scratch,
                                         std::uint32_t* counter) {
    if (!r.total) return;
    sum = block_sum<THREADS>(sum, static_cast<float*>(scratch));
    if (threadIdx.x == 0) static_cast<float*>(workspace)[blockIdx.x] = sum;
    if (ends_last(counter, scratch))
        write_total<THREADS>(r, static_cast<const float*>(workspace), gridDim.x, static_cast<double*>(scratch));
}

template <unsigned THREADS>
static GFLV2_KERNEL(THREADS) total_of_blocks(GFLV2_CONSTANT Reduction r, const float* partial, std::uint32_t count) {
    GFLV2_SHARED_MEMORY(double, scratch);
    write_total<THREADS>(r, partial, count, scratch);
}

// Calls start(counter), which launches the kernel in `blocks` blocks of THREADS threads, and in forward sees to the total.
template <unsigned THREADS, bool BACKWARD, class Start>
void launch_loss(const Reduction& r, const void* workspace, std::uint32_t blocks, void* stream, const Start& start) {
    const bool total_wanted = !BACKWARD && r.total;
    // A block reads 8·THREADS partial sums in one wait for memory: more than four take longer than a launch with more
    // threads.
    const bool few = blocks <= 32 * THREADS;
    std::uint32_t* const counter = total_wanted && few && blocks > 0 ? launch_counter(stream) : nullptr;
    if (blocks > 0) start(counter);
    if (!total_wanted || counter) return;
    const auto total = [&](auto kernel, unsigned threads) {
        launch(kernel, 1, threads, threads * sizeof(double), stream, r, static_cast<const float*>(workspace), blocks);
    };
    if (few) total(total_of_blocks<THREADS>, THREADS);
    else total(total_of_blocks<reduce_threads>, reduce_threads);
}

// Blocks of THREADS threads for one row a thread.
template <unsigned THREADS> std::uint32_t blocks_of_rows(std::int64_t rows) {
    const std::int64_t blocks = (rows + THREADS - 1) / THREADS;
    if (blocks > INT32_MAX) throw std::length_error("too many rows in one call");
    return std::uint32_t(blocks);
}

inline std::size_t total_workspace(std::uint32_t blocks) { return blocks * sizeof(float); }

}  // namespace gflv2::cuda
