// The C++ interface of `giou` and `iou`.
#pragma once

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

struct GiouArguments {
    Dtype dtype;        // of pred and its gradient
    bool loss;          // 1 − GIoU; else the IoU
    std::int64_t rows;  // N
    const void* pred;   // (N, 4) x1 y1 x2 y2 with the two strides below, in elements
    std::int64_t row_stride, side_stride;
    const void* target;  // (N, 4) S, contiguous
    double eps;          // smallest area
    Reduction reduction;
    void* grad_pred;    // (N, 4) contiguous, or null; backward only, as below
    void* grad_target;  // (N, 4) S contiguous, or null
    void* workspace;    // CUDA: giou_workspace() bytes, where the total is wanted
};

GFLV2_OPERATION(giou_forward, GiouArguments)
GFLV2_OPERATION(giou_backward, GiouArguments)
namespace cuda {
// Bytes for the sums over blocks.
std::size_t giou_workspace(std::int64_t rows);
}  // namespace cuda

}  // namespace gflv2
