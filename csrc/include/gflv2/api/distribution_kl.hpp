// The C++ interface of `distribution_kl`.
#pragma once

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

// Logits (N, R) with two strides, in elements.
struct LogitRows {
    Dtype dtype;
    const void* at;
    std::int64_t row_stride, bin_stride;
};

struct DistributionKlArguments {
    int bins;            // R
    std::int64_t rows;   // N
    LogitRows logits;    // the student's
    LogitRows teacher;   // of any dtype where the student's are not float64, else float64 too
    double temperature;  // T
    Reduction reduction;
    void* grad_logits;  // (N, R), in the dtype of the logits; backward only, as its strides
    std::int64_t grad_row_stride, grad_bin_stride;
    void* workspace;  // CUDA: distribution_kl_workspace() bytes, where the total is wanted
};

GFLV2_OPERATION(distribution_kl_forward, DistributionKlArguments)
GFLV2_OPERATION(distribution_kl_backward, DistributionKlArguments)
namespace cuda {
// Bytes for the sums over blocks.
std::size_t distribution_kl_workspace(std::int64_t rows);
}  // namespace cuda

}  // namespace gflv2
