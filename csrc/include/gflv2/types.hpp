// What crosses the border between Python and the kernels: element types, and the table of levels. No function is
// defined here, so that every translation unit, whatever its instruction set, means the same types.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gflv2 {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

// Storage only; the arithmetic is float's (storage.hpp converts). Ours, so that no CUDA header is needed.
struct half {
    std::uint16_t bits;
};
struct bfloat16 {
    std::uint16_t bits;
};

constexpr int max_levels = 8;
constexpr int min_bins = 2;
constexpr int max_bins = 65;

// Strides of a (B, 4, R, H, W) view, in elements: levels (B, 4·R, H, W) have side = R·channel stride; rows (M, 4, R)
// are one level of one image with H = 1, W = M.
struct Strides {
    std::int64_t image, side, bin, y, x;
};

// One feature level as the network leaves it.
struct Level {
    const void* logits;    // (B, 4, R, H, W)
    void* grad_logits;     // the same shape, or null
    Strides strides;       // of logits
    Strides grad_strides;  // of grad_logits
    std::int64_t height, width;
    std::int64_t first_point;  // index of the level's first point in the concatenated order
    double stride;             // pixels per cell; 0 where only distances are wanted
};

// All levels of a call; kernels receive it by value.
struct LevelTable {
    int count;
    Level level[max_levels];
};

// Where a CUDA call runs.
struct Place {
    int device;
    void* stream;
};

// Declares cpu::name and cuda::name.
#define GFLV2_OPERATION(name, Arguments)                        \
    namespace cpu { void name(const Arguments&, int threads); } \
    namespace cuda { void name(const Arguments&, Place); }

}  // namespace gflv2
