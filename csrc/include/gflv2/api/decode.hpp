// The C++ interface of `decode`. S stands for float, or double where the logits are double.
#pragma once

#include "gflv2/types.hpp"

namespace gflv2 {

// More points of one level are not sorted on a GPU: a block sorts them in its shared memory.
constexpr std::int64_t max_cuda_decode_topk = 4096;

struct DecodeArguments {
    Dtype class_dtype, box_dtype;  // both float64, or neither
    int classes;                   // C
    int bins;                      // R
    std::int64_t batch;            // B
    std::int64_t points;           // A, of all levels of one image
    std::int64_t rows;             // N = Σ_l min(topk, H_l·W_l)
    std::int64_t topk;             // points kept on each level
    LevelTable class_levels;       // (B, C, H, W): its "bins" are the classes; there are no sides
    LevelTable box_levels;
    const void* quality;        // (B, A) S, or null: J = σ(c)
    const void* projection;     // (R,) S
    const void* scales;         // (L,) S, or null: 1
    const void* image_sizes;    // (B, 2) S, height and width to clip to, or null
    const void* scale_factors;  // (B, 2) S, width and height factors to divide by, or null
    double score_threshold;     // scores not above it become 0
    double offset;              // point of cell (i, j) = ((j + offset)·stride, (i + offset)·stride)
    void* keys;                 // (B, A) S, scratch
    void* boxes;                // (B, N, 4) S
    void* scores;               // (B, N, C) S
    std::int64_t* indices;      // (B, N), flat index of each row's point
    std::int64_t* counts;       // (B,), rows with a score above the threshold
    void* distributions;        // (B, N, 4, R) S, or null
};

GFLV2_OPERATION(decode, DecodeArguments)

}  // namespace gflv2
