// Python's view of `dgqp` and `dgqp_statistics`.

#include "bindings/dgqp.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {

DgqpArguments read_dgqp(Fields& fields, bool backward) {
    DgqpArguments a{};
    const LevelList list = fields.levels("levels", backward ? "grad_levels" : nullptr, 4, {});
    check_bins(list.channels);
    a.bins = list.channels;
    a.batch = list.batch;
    a.points = list.points;
    a.levels = list.table;
    a.topk = fields.number("topk", 1, a.bins);
    a.hidden = fields.number("hidden", 0);
    GFLV2_READ(dtype);
    GFLV2_READ(scales);
    GFLV2_READ(mean);
    GFLV2_READ(variance);
    GFLV2_READ(weight1);
    GFLV2_READ(bias1);
    GFLV2_READ(weight2);
    GFLV2_READ(bias2);
    for (const void* const tensor : {a.weight1, a.bias1, a.weight2, a.bias2})
        if (a.hidden > 0 && tensor == nullptr) throw std::invalid_argument("predictor: expected four tensors");
    if (!backward) return a;
    a.grad_logits = fields.given_any("grad_levels");
    GFLV2_READ(grad_out);
    GFLV2_READ(grad_scales);
    GFLV2_READ(grad_weight1);
    GFLV2_READ(grad_bias1);
    GFLV2_READ(grad_weight2);
    GFLV2_READ(grad_bias2);
    if (!a.grad_out && a.hidden > 0) throw std::invalid_argument("grad_out: expected a tensor with a predictor");
    return a;
}

namespace {

void forward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("dgqp_forward", given);
    DgqpArguments a = read_dgqp(fields, false);
    GFLV2_READ(out);
    fields.finish();
    GFLV2_RUN(dgqp_forward, call, a);
}

void backward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("dgqp_backward", given);
    DgqpArguments a = read_dgqp(fields, true);
    fields.finish();
    if (wants_sums(a))
        a.workspace = GFLV2_WORKSPACE(call, cuda::dgqp_workspace(a.levels, a.batch, summed_features(a), summed_hidden(a)));
    GFLV2_RUN(dgqp_backward, call, a);
}

}  // namespace

void bind_dgqp(py::module_& m) {
    m.def("dgqp_forward", &forward);
    m.def("dgqp_backward", &backward);
}

}  // namespace gflv2
