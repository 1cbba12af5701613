// Python's view of `distribution_kl`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

DistributionKlArguments read(Fields& fields, bool backward) {
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
    return a;
}

DistributionKlArguments read_forward(Fields& fields, Call& call) {
    DistributionKlArguments a = read(fields, false);
    if (a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::distribution_kl_workspace(a.rows));
    return a;
}

DistributionKlArguments read_backward(Fields& fields, Call&) { return read(fields, true); }

}  // namespace

void bind_distribution_kl(py::module_& m) {
    GFLV2_BIND(m, distribution_kl_forward, read_forward);
    GFLV2_BIND(m, distribution_kl_backward, read_backward);
}

}  // namespace gflv2
