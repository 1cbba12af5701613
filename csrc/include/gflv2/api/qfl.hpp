// The C++ interface of `qfl`.
#pragma once

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

// What the values of a score map are.
enum class QflForm : int { logits = 0, joint = 1, probabilities = 2 };

// The score map is a table of levels whose "bins" are the classes; there are no sides. Rows (N, C) are one level of one
// image with H = 1, W = N. S stands for float, or double where the score map is double.
struct QflArguments {
    Dtype dtype;
    QflForm form;
    int classes;          // C
    std::int64_t batch;   // B
    std::int64_t points;  // A, of all levels of one image
    LevelTable levels;
    const void* quality;         // (B, A) S logits; joint form, else null
    const std::int64_t* labels;  // (B, A), outside [0, C): background; null: the target is dense
    const void* scores;          // (B, A) S; dense: (N, C) S with the two strides below, rows only
    std::int64_t score_row, score_class;
    double beta;
    Reduction reduction;  // a row is a point
    bool grad_logits;     // are Level::grad_logits wanted? Backward only, as all below
    void* grad_quality;   // (B, A) S, or null
    void* workspace;      // CUDA: qfl_workspace() bytes, where the total is wanted
};

GFLV2_OPERATION(qfl_forward, QflArguments)
GFLV2_OPERATION(qfl_backward, QflArguments)
namespace cuda {
// Bytes for the sums over blocks.
std::size_t qfl_workspace(const LevelTable& levels, std::int64_t batch);
}  // namespace cuda

}  // namespace gflv2
