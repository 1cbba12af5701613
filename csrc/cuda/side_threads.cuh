// A block of one warp per side: lane = point, warp = side. Few points are positive, and a warp without one leaves after reading
// 32 numbers.
#pragma once

#include <cstdint>

#include "cuda/rows.cuh"
#include "gflv2/blocks.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {

// What a thread knows of its point. Threads past the end have a point that does not exist.
struct ThreadPoint {
    std::uint32_t point, row, column;  // in the level
    std::int64_t place;                // in (B, A)
    bool exists;
    int side;

    __device__ ThreadPoint(const Chunk& chunk, const Level& level, std::int64_t points)
        : point(chunk.first + threadIdx.x % warp), row(point / std::uint32_t(level.width)), column(point - row * std::uint32_t(level.width)),
          place(chunk.image * points + level.first_point + point), exists(point < std::uint32_t(level.height * level.width)),
          side(threadIdx.x / warp) {}

    __device__ void cell(float offset, float* to) const {
        to[0] = float(column) + offset;
        to[1] = float(row) + offset;
    }

    __device__ std::int64_t offset_in(const Strides& s) const { return row * s.y + column * s.x; }

    template <class T> __device__ MemoryRow<T> row_of(const Level& level, std::uint32_t image) const {
        const T* at = static_cast<const T*>(level.logits) + image * level.strides.image + side * level.strides.side;
        return {at + offset_in(level.strides), level.strides.bin};
    }
};

}  // namespace gflv2::cuda
