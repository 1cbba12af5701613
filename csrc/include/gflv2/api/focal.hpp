// The C++ interface of `focal`.
#pragma once

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

// What the element of a point's label is.
enum class FocalKind : int { sigmoid_focal = 0, varifocal = 1, matchability_aware = 2, iou_aware_bce = 3 };

// Levels and rows as in QflArguments. S stands for float, or double where the score map is double.
struct FocalArguments {
    Dtype dtype;
    FocalKind kind;
    int classes;          // C
    std::int64_t batch;   // B
    std::int64_t points;  // A, of all levels of one image
    LevelTable levels;
    const std::int64_t* labels;  // (B, A), outside [0, C): background
    const void* scores;          // (B, A) S, y of the label's class; null: 1
    double alpha;                // sigmoid_focal: factor of the label's element; iou_aware_bce: exponent of σ
    double negative;             // factor of the negatives
    double gamma;                // exponent of σ in the negatives' weight
    bool iou_weighted;           // varifocal: is y the weight of the label's element?
    bool detach;                 // is the negatives' weight a constant to the gradient?
    Reduction reduction;         // a row is a point
    bool grad_logits;            // are Level::grad_logits wanted? Backward only
    void* workspace;             // CUDA: focal_workspace() bytes, where the total is wanted
};

GFLV2_OPERATION(focal_forward, FocalArguments)
GFLV2_OPERATION(focal_backward, FocalArguments)
namespace cuda {
// Bytes for the sums over blocks.
std::size_t focal_workspace(const LevelTable& levels, std::int64_t batch);
}  // namespace cuda

}  // namespace gflv2
