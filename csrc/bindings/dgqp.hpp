// The fields of `dgqp`, which the backward pass of `gfl_loss` has too.
#pragma once

#include "bindings/bindings.hpp"
#include "gflv2/api/dgqp.hpp"

namespace gflv2 {

// backward: its fields too.
DgqpArguments read_dgqp(Fields& fields, bool backward);
// Memory for the sums of a GPU, where sums are wanted.
void give_workspace(DgqpArguments& a, Call& call);

}  // namespace gflv2
