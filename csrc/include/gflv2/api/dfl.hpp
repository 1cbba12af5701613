// The C++ interface of `dfl`.
#pragma once

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

struct DflArguments {
    Dtype dtype;
    int bins;            // R
    std::int64_t rows;   // N
    const void* logits;  // (N, R) with the two strides below, in elements
    std::int64_t row_stride, bin_stride;
    const void* target;  // (N,) S, in bins
    Reduction reduction;
    void* grad_logits;  // (N, R); backward only, as its strides
    std::int64_t grad_row_stride, grad_bin_stride;
    void* workspace;  // CUDA: dfl_workspace() bytes, where the total is wanted
};

GFLV2_OPERATION(dfl_forward, DflArguments)
GFLV2_OPERATION(dfl_backward, DflArguments)
namespace cuda {
// Bytes for the sums over blocks.
std::size_t dfl_workspace(std::int64_t rows);
}  // namespace cuda

}  // namespace gflv2
