// Rows (N, R) of any strides on CUDA, one a thread: how a block walks over those that travel through its shared memory.
#pragma once

#include <cstdint>

#include "cuda/level_rows.cuh"

namespace gflv2::cuda {

// f(element offset, place in shared memory) for every element of `rows` ≤ THREADS rows, in the order of memory. Rows
// with the bins apart are visited row by row within a bin.
template <unsigned THREADS, int BINS, class F>
__device__ inline void visit_row_tile(std::uint32_t rows, int bins, std::int64_t row_stride, std::int64_t bin_stride,
                                      const F& f) {
    bins = BINS > 0 ? BINS : bins;
    if (bin_stride == 1) {
        for (std::uint32_t e = threadIdx.x; e < rows * bins; e += THREADS) {
            const std::uint32_t row = e / bins, bin = e - row * bins;
            f(row * row_stride + bin, row * pitch_of(bins) + bin);
        }
    } else if (threadIdx.x < rows) {
        for (int bin = 0; bin < bins; ++bin)
            f(threadIdx.x * row_stride + bin * bin_stride, threadIdx.x * pitch_of(bins) + bin);
    }
}

// The rows to shared memory.
template <unsigned THREADS, int BINS, class T>
__device__ inline void matrix_to_shared(const T* from, std::uint32_t rows, int bins, std::int64_t row_stride,
                                        std::int64_t bin_stride, float* tile) {
    visit_row_tile<THREADS, BINS>(rows, bins, row_stride, bin_stride, [&](std::int64_t element, std::uint32_t place) {
        tile[place] = widen(from[element]);
    });
}

// The way back; rounds to T.
template <unsigned THREADS, int BINS, class T>
__device__ inline void matrix_from_shared(T* to, std::uint32_t rows, int bins, std::int64_t row_stride,
                                          std::int64_t bin_stride, const float* tile) {
    visit_row_tile<THREADS, BINS>(rows, bins, row_stride, bin_stride, [&](std::int64_t element, std::uint32_t place) {
        to[element] = narrow<T>(tile[place]);
    });
}

}  // namespace gflv2::cuda
