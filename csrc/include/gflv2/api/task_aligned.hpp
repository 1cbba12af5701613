// The C++ interface of `task_aligned`: what the assignment receives, and where it runs.
#pragma once

#include "gflv2/types.hpp"

namespace gflv2 {

// The boxes of one image.
struct TaskAlignedImage {
    const float* boxes;          // (count, 4) x1 y1 x2 y2
    const std::int64_t* labels;  // (count,)
    const std::int64_t* limit;   // on the device: how many of the boxes exist; null: all
    std::int64_t count;
    std::int64_t first;  // index of its first box among those of all images
};

struct TaskAlignedArguments {
    const void* scores;  // (B, A, C)
    Dtype dtype;
    std::int64_t image_stride, point_stride, class_stride;  // of scores, in elements
    std::int64_t batch, points, classes;                    // B, A, C
    const float* boxes;                                     // (B, A, 4), predicted
    const float* positions;                                 // (A, 2)
    const TaskAlignedImage* images;                         // (B,), on the host
    std::int64_t total_boxes;                               // of all images
    double alpha, beta;                                     // exponents of score and overlap
    int topk, final_topk;                                   // final_topk: 0 where all points of a box remain
    float margin, min_side, eps;                            // min_side: negative where boxes stay as they are
    bool ciou;                                              // else IoU
    bool inside;                                            // the candidates are points inside the box; else any
    bool zeros;                                             // a candidate may have metric 0
    bool containing;  // all boxes around a contested point compete; else those that chose it
    bool normalize;
    std::int64_t* index;    // (B, A): 0 background, k > 0: box k − 1
    float* iou;             // (B, A)
    std::int64_t* labels;   // (B, A)
    float* targets;         // (B, A)
    std::uint32_t* claims;  // (B, A) scratch of a GPU
    long long* most;        // (total_boxes, 2) scratch of a GPU
};

GFLV2_OPERATION(task_aligned, TaskAlignedArguments)

}  // namespace gflv2
