// Sums over a block and over blocks. No float atomics: the order of every sum depends on the shapes alone, so the result has
// the same bits every time.
#pragma once

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

// Second stage: block `s` of the grid sums the partial sums [begin, end) into *to. Few numbers, so double is affordable.
struct Segment {
    const float* begin;
    const float* end;
    float* to;
};

__device__ inline void sum_segment(Segment segment, double* scratch) {
    double sum = 0;
    for (const float* at = segment.begin + threadIdx.x; at < segment.end; at += reduce_threads) sum += *at;
    sum = block_sum<reduce_threads>(sum, scratch);
    if (threadIdx.x == 0) *segment.to = float(sum);
}

}  // namespace gflv2::cuda
