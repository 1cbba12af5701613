// Python's view of `distribution_kl`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

template <bool backward> DistributionKlArguments read(Fields& fields, Call& call) {
    DistributionKlArguments a{};
    const Rows logits = fields.rows("logits"), teacher = fields.rows("teacher");
    check_mixed(logits.dtype, teacher.dtype);
    a.bins = check_bins(logits.columns);
    a.rows = logits.rows;
    a.logits = {logits.dtype, logits.at, logits.row_stride, logits.column_stride};
    a.teacher = {teacher.dtype, teacher.at, teacher.row_stride, teacher.column_stride};
    if (backward) take_gradient_rows(a, fields.rows("grad_logits"));
    fields.read("temperature", a.temperature);
    fields.read_reduction(a.reduction, backward);
    if (!backward && a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::distribution_kl_workspace(a.rows));
    return a;
}

}  // namespace

void bind_distribution_kl(py::module_& m) {
    GFLV2_BIND(m, distribution_kl_forward, read<false>);
    GFLV2_BIND(m, distribution_kl_backward, read<true>);
}

}  // namespace gflv2
