// Sums over a block and over blocks. No float atomics: the order of every sum depends on the shapes alone, so the
// result has the same bits every time.
#pragma once

#include <cstdint>

#include "gflv2/launch.hpp"

namespace gflv2::cuda {

constexpr unsigned reduce_threads = 128;

// Sum of `value` over the block's THREADS threads, in thread 0. `scratch` has THREADS places, free before and after.
template <unsigned THREADS, class S> __device__ inline S block_sum(S value, S* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    }
    __syncthreads();
    return scratch[0];
}

// Second stage, in one block: Σ partial[i·step] for i < count, in thread 0. Few numbers, so double is affordable.
__device__ inline double sum_of_partials(const float* partial, std::uint32_t count, int step, double* scratch) {
    double sum = 0;
    for (std::uint32_t i = threadIdx.x; i < count; i += reduce_threads) sum += partial[std::int64_t(i) * step];
    return block_sum<reduce_threads>(sum, scratch);
}

}  // namespace gflv2::cuda
