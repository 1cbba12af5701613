// Python's view of `integral`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

IntegralArguments read(Fields& fields, bool backward) {
    IntegralArguments a{};
    const std::vector<double> strides = fields.numbers("strides");
    const LevelList list = fields.levels("logits", backward ? "grad_logits" : nullptr, 4, strides);
    take_levels(a, list);
    a.bins = check_bins(list.channels);
    a.grad_logits = list.gradients;
    fields.read("projection", a.projection);
    fields.read("scales", a.scales);
    fields.read("points", a.row_points);
    fields.read("point_strides", a.row_strides);
    fields.read("offset", a.offset);
    a.decode = a.row_points != nullptr || !strides.empty();
    return a;
}

IntegralArguments read_forward(Fields& fields, Call&) {
    IntegralArguments a = read(fields, false);
    fields.read("out", a.out, arithmetic(a.dtype));
    return a;
}

IntegralArguments read_backward(Fields& fields, Call& call) {
    IntegralArguments a = read(fields, true);
    const Dtype s = arithmetic(a.dtype);
    fields.read("grad_out", a.grad_out, s);
    fields.read("grad_projection", a.grad_projection, s);
    fields.read("grad_scales", a.grad_scales, s);
    if (a.grad_projection || a.grad_scales)
        a.workspace =
            GFLV2_WORKSPACE(call, cuda::integral_workspace(a.levels, a.batch, a.grad_projection ? a.bins : 0));
    return a;
}

}  // namespace

void bind_integral(py::module_& m) {
    GFLV2_BIND(m, integral_forward, read_forward);
    GFLV2_BIND(m, integral_backward, read_backward);
}

}  // namespace gflv2
