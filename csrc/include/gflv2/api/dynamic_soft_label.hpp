// The C++ interface of `dynamic_soft_label`: what the assignment receives.
#pragma once

#include "gflv2/types.hpp"

namespace gflv2 {

// Whose costs.
enum class SoftLabelCost : int { rtmdet = 0, nanodet = 1, simota = 2, align_ota = 3 };

// The boxes of one image.
struct SoftLabelImage {
    const float* boxes;          // (count, 4) x1 y1 x2 y2 in pixels
    const std::int64_t* labels;  // (count,)
    const std::int64_t* limit;   // on the device: how many of the boxes exist; null: all
    std::int64_t count;
};

struct DynamicSoftLabelArguments {
    Dtype dtype;  // of the class values
    SoftLabelCost cost;
    int classes;          // C
    int topk;             // IoUs that are summed: k is at most that
    std::int64_t batch;   // B
    std::int64_t points;  // A
    float iou_weight, class_weight;
    float center_radius;                                 // strides; not for nanodet
    const void* values;                                  // (B, A, C) logits, or probabilities for simota and align_ota
    std::int64_t value_image, value_point, value_class;  // their strides, in elements
    const float* boxes;                                  // (B, A, 4) predicted x1 y1 x2 y2 in pixels
    const float* places;                                 // (A, 2) in pixels
    const float* strides;                                // (A,) pixels
    const SoftLabelImage* images;                        // (B,), on the host
    std::int64_t* index;                                 // (B, A): 0 background, k > 0: box k − 1
    float* iou;                                          // (B, A)
    std::int64_t* labels;                                // (B, A)
    void* workspace;                                     // CUDA: dynamic_soft_label_workspace() bytes
};

GFLV2_OPERATION(dynamic_soft_label, DynamicSoftLabelArguments)
namespace cuda {
// Bytes for what a call keeps of its points.
std::size_t dynamic_soft_label_workspace(std::int64_t batch, std::int64_t points);
}  // namespace cuda

}  // namespace gflv2
