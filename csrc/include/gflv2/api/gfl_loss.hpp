// The C++ interface of the two box losses of `gfl_loss`; its third, the Quality Focal Loss, is `qfl`'s. S stands for
// float, or double where the box logits are double.
//
// The logits have one gradient: that of the box losses and that which comes through the statistics of `dgqp` are
// written together.
#pragma once

#include "gflv2/api/dgqp.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

struct BoxLossArguments {
    Dtype dtype;
    int bins;
    std::int64_t batch, points;
    LevelTable levels;
    const void* scales;      // (L,) S, or null: 1
    const void* projection;  // (R,) S, equal steps
    double offset;
    const void* boxes;        // (B, A, 4) S in pixels
    const void* weights;      // (B, A) S; only points with a weight above 0 count
    const void* normalisers;  // (2,) S: N_pos, W
    double factors[2];        // of the GIoU loss, of the DFL (the mean over the sides included)
    void* sides;              // (B, A, 4, 2) S: weight · ∂(1 − GIoU)/∂distance, target of DFL in bins; 0 elsewhere
    void* losses[2];          // () S each: GIoU loss, DFL
    void* workspace;          // CUDA: box_loss_forward_workspace() bytes
};

// What forward leaves for backward, with the upstream gradients.
struct SavedBoxLoss {
    const void* sides;           // (B, A, 4, 2) S, as forward wrote them
    const void* weights;         // (B, A) S; only points with a weight above 0 count
    const void* projection;      // (R,) S
    const void* grad_losses[2];  // () S each: upstream gradients of the GIoU loss and of DFL
    const void* normalisers;     // (2,) S: N_pos, W
    double factors[2];           // of the two losses
};

struct BoxLossBackwardArguments {
    DgqpArguments dgqp;  // as dgqp_backward takes them
    SavedBoxLoss box;
};

GFLV2_OPERATION(box_loss_forward, BoxLossArguments)
GFLV2_OPERATION(box_loss_backward, BoxLossBackwardArguments)
namespace cuda {
// Bytes for the sums over blocks; features and hidden as dgqp_workspace takes them.
std::size_t box_loss_forward_workspace(const LevelTable& levels, std::int64_t batch);
std::size_t box_loss_backward_workspace(const LevelTable& levels, std::int64_t batch, int features, int hidden);
}  // namespace cuda

}  // namespace gflv2
