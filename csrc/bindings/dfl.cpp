// Python's view of `dfl`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

DflArguments read(Fields& fields, bool backward) {
    DflArguments a{};
    const Rows logits = fields.rows("logits");
    check_bins(logits.columns);
    a.bins = logits.columns;
    a.rows = logits.rows;
    a.logits = logits.at;
    a.row_stride = logits.row_stride;
    a.bin_stride = logits.column_stride;
    GFLV2_READ(dtype);
    GFLV2_READ(target);
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
    Fields fields("dfl_forward", given);
    DflArguments a = read(fields, false);
    if (a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::dfl_workspace(a.rows));
    GFLV2_RUN(dfl_forward, call, a);
}

void backward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("dfl_backward", given);
    const DflArguments a = read(fields, true);
    GFLV2_RUN(dfl_backward, call, a);
}

}  // namespace

void bind_dfl(py::module_& m) {
    m.def("dfl_forward", &forward);
    m.def("dfl_backward", &backward);
}

}  // namespace gflv2
