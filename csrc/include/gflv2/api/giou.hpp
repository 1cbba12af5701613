// The C++ interface of `giou`, `iou` and `ciou`.
#pragma once

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

// What is computed of a pair: the IoU, 1 − GIoU, or 1 − CIoU as Ultralytics or as mmdet define it (gflv2/ciou.hpp). In the
// order of gflv2/ops/giou.py.
enum class BoxForm : int { iou, giou, ciou, ciou_mmdet };

struct GiouArguments {
    Dtype dtype;        // of pred and its gradient
    BoxForm form;       // what is computed
    std::int64_t rows;  // N
    const void* pred;   // (N, 4) x1 y1 x2 y2 with the two strides below, in elements
    std::int64_t row_stride, side_stride;
    const void* target;  // (N, 4) S, contiguous
    double eps;          // smallest area; of a CIoU, what is added
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
