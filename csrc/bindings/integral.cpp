// Python's view of `integral`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

template <bool backward> IntegralArguments read(Fields& fields, Call& call) {
    IntegralArguments a{};
    const std::vector<double> strides = fields.numbers("strides");
    const LevelList list = fields.levels("logits", backward ? "grad_logits" : nullptr, 4, strides);
    take_levels(a, list);
    a.bins = check_bins(list.channels);
    a.grad_logits = list.gradients;
    fields.read("projection", a.projection, "scales", a.scales, "points", a.row_points, "point_strides", a.row_strides,
                "offset", a.offset);
    a.decode = a.row_points != nullptr || !strides.empty();
    const Dtype s = arithmetic(a.dtype);
    if (backward)
        fields.read_written(s, "grad", a.grad_out, "grad_projection", a.grad_projection, "grad_scales", a.grad_scales);
    else fields.read_written(s, "out", a.out);
    if (a.grad_projection || a.grad_scales)
        a.workspace =
            GFLV2_WORKSPACE(call, cuda::integral_workspace(a.levels, a.batch, a.grad_projection ? a.bins : 0));
    return a;
}

}  // namespace

void bind_integral(py::module_& m) {
    GFLV2_BIND(m, integral_forward, read<false>);
    GFLV2_BIND(m, integral_backward, read<true>);
}

}  // namespace gflv2
