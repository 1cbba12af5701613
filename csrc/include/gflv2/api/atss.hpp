// The C++ interface of `atss`: what the assignment receives, and where it runs.
#pragma once

#include "gflv2/types.hpp"

namespace gflv2 {

constexpr int max_atss_side = 1 << 15;  // cells a side of a grid

// One feature level: H·W cells of a grid, or n points anywhere (height 1, width n).
struct AtssLevel {
    const float* points;       // (n, 2) in pixels, or null: the grid
    std::int64_t first_point;  // index of the level's first point in the concatenated order
    std::int32_t height, width;
    float stride;      // pixels per cell
    float per_stride;  // 1 / stride, where a rounding does not matter
    float half;        // half the side of an anchor, pixels
};

// The boxes of one image, and its own part of each level.
struct AtssImage {
    const float* boxes;          // (count, 4) x1 y1 x2 y2 in pixels
    const std::int64_t* labels;  // (count,)
    const std::int64_t* limit;   // on the device: how many of the boxes exist; null: all
    const float* ignore_boxes;   // (ignore_count, 4)
    std::int64_t count, ignore_count;
    std::int32_t rows[max_levels], columns[max_levels];  // valid cells
};

struct AtssArguments {
    std::int64_t batch;   // B
    std::int64_t points;  // A, of all levels of one image
    int level_count;
    AtssLevel level[max_levels];
    const AtssImage* images;  // (B,), on the host
    int topk;                 // candidates of a box on each level
    float offset;             // point of cell (i, j) = ((j + offset)·stride, (i + offset)·stride)
    float ignore_threshold;   // share of an anchor; used where an image has ignore boxes
    bool ignoring;            // does any image?
    std::int64_t* index;      // (B, A): 0 negative, −1 ignored, k > 0: box k − 1
    float* iou;               // (B, A)
    std::int64_t* labels;     // (B, A)
    std::uint8_t* ignored;    // (B, A) scratch; where `ignoring`
    void* workspace;          // CUDA: atss_workspace() bytes
};

GFLV2_OPERATION(atss, AtssArguments)
namespace cuda {
// Bytes for the claims.
std::size_t atss_workspace(const AtssArguments& a);
}  // namespace cuda

}  // namespace gflv2
