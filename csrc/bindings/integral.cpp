// Python's view of `integral`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

IntegralArguments read(Fields& fields, bool backward) {
    IntegralArguments a{};
    const std::vector<double> strides = fields.numbers("strides");
    const LevelList list = fields.levels("levels", backward ? "grad_levels" : nullptr, 4, strides);
    check_bins(list.channels);
    a.bins = list.channels;
    a.batch = list.batch;
    a.points = list.points;
    a.levels = list.table;
    GFLV2_READ(dtype);
    GFLV2_READ(projection);
    GFLV2_READ(scales);
    GFLV2_READ(row_points);
    GFLV2_READ(row_strides);
    GFLV2_READ(offset);
    a.decode = a.row_points != nullptr || !strides.empty();
    return a;
}

void forward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("integral_forward", given);
    IntegralArguments a = read(fields, false);
    GFLV2_READ(out);
    fields.finish();
    GFLV2_RUN(integral_forward, call, a);
}

void backward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("integral_backward", given);
    IntegralArguments a = read(fields, true);
    a.grad_logits = fields.given_any("grad_levels");
    GFLV2_READ(grad_out);
    GFLV2_READ(grad_projection);
    GFLV2_READ(grad_scales);
    fields.finish();
    if (a.grad_projection || a.grad_scales)
        a.workspace = GFLV2_WORKSPACE(call, cuda::integral_workspace(a.levels, a.batch, a.grad_projection ? a.bins : 0));
    GFLV2_RUN(integral_backward, call, a);
}

}  // namespace

void bind_integral(py::module_& m) {
    m.def("integral_forward", &forward);
    m.def("integral_backward", &backward);
}

}  // namespace gflv2
