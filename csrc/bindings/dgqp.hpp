// The fields of `dgqp`, which the backward pass of `gfl_loss` has too.
#pragma once

#include "bindings/bindings.hpp"
#include "gflv2/api/dgqp.hpp"

namespace gflv2 {

// grad: the name of the upstream gradient; null for a forward pass.
DgqpArguments read_dgqp(Fields& fields, const char* levels, const char* grad);

// What backward sums over all points: nothing, or these sizes of the predictor, 0 where only the scales need a gradient.
inline bool wants_sums(const DgqpArguments& a) { return a.grad_weight1 || a.grad_scales; }
inline int summed_features(const DgqpArguments& a) { return a.grad_weight1 ? a.features() : 0; }
inline int summed_hidden(const DgqpArguments& a) { return a.grad_weight1 ? a.hidden : 0; }

}  // namespace gflv2
