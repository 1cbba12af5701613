// What becomes of the losses of the rows. S stands for float, or double where the logits or boxes are double.
#pragma once

#include <cstdint>

namespace gflv2 {

struct Reduction {
    bool total;          // their sum, one number; else one number a row
    const void* weight;  // (rows,) S, or null: 1
    double divisor;      // of the total
    const void* factor;  // () S on the device: one more divisor of the total, or null
    void* out;  // (rows,) or () S; forward. On a CPU backward takes it too, or null: values and gradients in one pass
    const void* grad_out;  // (rows,) or () S; backward only. On a CPU null: 1
};

}  // namespace gflv2
