// Python's view of `distribution_kl`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

DistributionKlArguments read(Fields& fields, bool backward) {
    DistributionKlArguments a{};
    const auto logits_of = [&](const char* name, const char* dtype) {
        const Rows rows = fields.rows(name);
        LogitRows found{};
        fields.read(dtype, found.dtype);
        check_bins(rows.columns);
        a.bins = rows.columns;
        a.rows = rows.rows;
        found.at = rows.at;
        found.row_stride = rows.row_stride;
        found.bin_stride = rows.column_stride;
        return found;
    };
    a.logits = logits_of("logits", "dtype");
    a.teacher = logits_of("teacher", "teacher_dtype");
    if ((a.logits.dtype == Dtype::float64) != (a.teacher.dtype == Dtype::float64))
        throw std::invalid_argument("teacher: expected float64 where the logits are, and only there");
    GFLV2_READ(temperature);
    GFLV2_READ(reduction);
    if (backward) {
        const Rows gradient = fields.rows("grad_logits");
        a.grad_logits = gradient.at;
        a.grad_row_stride = gradient.row_stride;
        a.grad_bin_stride = gradient.column_stride;
    }
    fields.finish();
    return a;
}

void forward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("distribution_kl_forward", given);
    DistributionKlArguments a = read(fields, false);
    if (a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::distribution_kl_workspace(a.rows));
    GFLV2_RUN(distribution_kl_forward, call, a);
}

void backward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("distribution_kl_backward", given);
    const DistributionKlArguments a = read(fields, true);
    GFLV2_RUN(distribution_kl_backward, call, a);
}

}  // namespace

void bind_distribution_kl(py::module_& m) {
    m.def("distribution_kl_forward", &forward);
    m.def("distribution_kl_backward", &backward);
}

}  // namespace gflv2
