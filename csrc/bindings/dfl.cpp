// Python's view of `dfl`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

template <bool backward> DflArguments read(Fields& fields, Call& call) {
    DflArguments a{};
    const Rows logits = fields.rows("logits");
    a.dtype = logits.dtype;
    a.bins = check_bins(logits.columns);
    a.rows = logits.rows;
    a.logits = logits.at;
    a.row_stride = logits.row_stride;
    a.bin_stride = logits.column_stride;
    if (backward) take_gradient_rows(a, fields.rows("grad_logits"));
    fields.read("target", a.target);
    fields.read_reduction(a.reduction, backward);
    if (!backward && a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::dfl_workspace(a.rows));
    return a;
}

}  // namespace

void bind_dfl(py::module_& m) {
    GFLV2_BIND(m, dfl_forward, read<false>);
    GFLV2_BIND(m, dfl_backward, read<true>);
}

}  // namespace gflv2
