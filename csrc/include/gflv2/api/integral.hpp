// The C++ interface of `integral`. S stands for float, or double where the logits are double.
#pragma once

#include "gflv2/types.hpp"

namespace gflv2 {

struct IntegralArguments {
    Dtype dtype;
    int bins;             // R
    std::int64_t batch;   // B
    std::int64_t points;  // A, of all levels of one image
    LevelTable levels;
    const void* projection;   // (R,) S
    const void* scales;       // (L,) S, or null: 1
    const void* row_points;   // (A, 2) S in pixels, or null: the grid of each level
    const void* row_strides;  // (A,) S, or null: Level::stride
    bool decode;              // boxes in pixels instead of distances
    double offset;            // point of cell (i, j) = ((j + offset)·stride, (i + offset)·stride)
    void* out;                // (B, A, 4) S; forward only
    const void* grad_out;     // (B, A, 4) S; backward only, as all below
    bool grad_logits;         // are Level::grad_logits wanted?
    void* grad_projection;    // (R,) S, or null
    void* grad_scales;        // (L,) S, or null
    void* workspace;          // CUDA: integral_workspace() bytes, where a sum is wanted
};

GFLV2_OPERATION(integral_forward, IntegralArguments)
GFLV2_OPERATION(integral_backward, IntegralArguments)
namespace cuda {
// Bytes for the sums over blocks; projection_bins: R where the projection needs a gradient, else 0.
std::size_t integral_workspace(const LevelTable& levels, std::int64_t batch, int projection_bins);
}  // namespace cuda

}  // namespace gflv2
