// The C++ interface of `gfl_targets`. S stands for float, or double where the box logits are double.
#pragma once

#include "gflv2/types.hpp"

namespace gflv2 {

// The boxes of one image, and its own part of each level.
struct GflImage {
    const void* boxes;  // (count, 4) S, x1 y1 x2 y2 in pixels
    std::int64_t count;
    std::int32_t rows[max_levels], columns[max_levels];  // valid cells
};

struct GflTargetsArguments {
    Dtype dtype, class_dtype;      // float64 both or neither
    int bins, classes;             // R, C
    std::int64_t batch;            // B
    std::int64_t points;           // A, of all levels of one image
    LevelTable levels;             // box logits
    LevelTable class_levels;       // class logits: their "bins" are the classes; there are no sides
    const void* scales;            // (L,) S, or null: 1
    const void* projection;        // (R,) S
    const void* quality;           // (B, A) S logits, or null: none
    double offset;                 // point of cell (i, j) = ((j + offset)·stride, (i + offset)·stride)
    const std::int64_t* index;     // (B, A): k > 0: box k − 1 of the image, 0: negative, −1: ignored
    const std::int64_t* assigned;  // (B, A) class of that box
    const GflImage* images;        // (B,), on the host
    std::int64_t* labels;          // (B, A), −1 where not positive
    void* boxes;                   // (B, A, 4) S in pixels, 0 where not positive, as the next two
    void* scores;                  // (B, A) S: IoU of the predicted box with its box
    void* weights;                 // (B, A) S: highest joint score
    void* label_weights;           // (B, A) S: 0 at ignored points and invalid cells, else 1
    void* sums;                    // (2,) S: Σ_images max(positives, 1), Σ weights
    void* workspace;               // CUDA: gfl_targets_workspace() bytes
};

GFLV2_OPERATION(gfl_targets, GflTargetsArguments)
namespace cuda {
// Bytes for the sums over blocks.
std::size_t gfl_targets_workspace(const LevelTable& levels, std::int64_t batch);
}  // namespace cuda

}  // namespace gflv2
