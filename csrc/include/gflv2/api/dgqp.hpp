// The C++ interface of `dgqp` and `dgqp_statistics`. S stands for float, or double where the logits are double.
#pragma once

#include "gflv2/types.hpp"

namespace gflv2 {

struct DgqpArguments {
    Dtype dtype;
    int bins;             // R
    std::int64_t batch;   // B
    std::int64_t points;  // A, of all levels of one image
    LevelTable levels;
    const void* scales;    // (L,) S, or null: 1
    int topk;              // k
    bool mean, variance;   // F = 4·(k + mean + variance)
    int hidden;            // 0: the statistics alone, without a predictor
    const void* weight1;   // (hidden, F) S
    const void* bias1;     // (hidden,) S
    const void* weight2;   // (hidden,) S
    const void* bias2;     // (1,) S
    void* out;             // (B, A) S, or the statistics (B, A, F) S; forward only
    const void* grad_out;  // the same shape; backward only, as all below. Without a predictor null: 0
    bool grad_logits;      // are Level::grad_logits wanted?
    void* grad_scales;     // (L,) S, or null
    void* grad_weight1;    // like weight1, or null together with the next three
    void* grad_bias1;
    void* grad_weight2;
    void* grad_bias2;
    void* workspace;  // CUDA: dgqp_workspace() bytes, where a sum is wanted

    int features() const { return 4 * (topk + int(mean) + int(variance)); }
};

GFLV2_OPERATION(dgqp_forward, DgqpArguments)
GFLV2_OPERATION(dgqp_backward, DgqpArguments)
namespace cuda {
// Bytes for the sums over blocks; features and hidden: 0 where the predictor needs no gradient.
std::size_t dgqp_workspace(const LevelTable& levels, std::int64_t batch, int features, int hidden);
}  // namespace cuda

}  // namespace gflv2
