// Python's view of `dgqp` and `dgqp_statistics`.

#include "bindings/dgqp.hpp"

#include "gflv2/api.hpp"

namespace gflv2 {

DgqpArguments read_dgqp(Fields& fields, const char* levels, const char* grad) {
    DgqpArguments a{};
    const LevelList list = fields.levels(levels, grad ? "grad_logits" : nullptr, 4);
    take_levels(a, list);
    a.bins = check_bins(list.channels);
    a.grad_logits = list.gradients;
    a.topk = fields.integer("topk", 1, a.bins);
    fields.read("scales", a.scales, "mean", a.mean, "variance", a.variance);
    // Four tensors, or none: the statistics alone.
    const auto layers = [&](const char* name) {
        const std::vector<py::object> given = fields.objects(name);
        if (!given.empty() && given.size() != 4)
            throw std::invalid_argument(std::string(name) + ": expected four tensors or none, got " +
                                        std::to_string(given.size()));
        return given;
    };
    const std::vector<py::object> predictor = layers("predictor");
    if (!predictor.empty()) {
        a.hidden = py::cast<int>(py::sequence(predictor[0].attr("shape"))[0]);
        a.weight1 = address_of(predictor[0]);
        a.bias1 = address_of(predictor[1]);
        a.weight2 = address_of(predictor[2]);
        a.bias2 = address_of(predictor[3]);
    }
    if (!grad) return a;
    const Dtype s = arithmetic(a.dtype);
    fields.read_written(s, grad, a.grad_out, "grad_scales", a.grad_scales);
    const std::vector<py::object> gradients = layers("grad_predictor");
    if (!gradients.empty()) {
        a.grad_weight1 = address_of(gradients[0]);
        a.grad_bias1 = address_of(gradients[1]);
        a.grad_weight2 = address_of(gradients[2]);
        a.grad_bias2 = address_of(gradients[3]);
    }
    if (!a.grad_out && a.hidden > 0)
        throw std::invalid_argument(std::string(grad) + ": expected a tensor with a predictor");
    return a;
}

namespace {

DgqpArguments read_forward(Fields& fields, Call&) {
    DgqpArguments a = read_dgqp(fields, "logits", nullptr);
    fields.read_written(arithmetic(a.dtype), "out", a.out);
    return a;
}

DgqpArguments read_backward(Fields& fields, Call& call) {
    DgqpArguments a = read_dgqp(fields, "logits", "grad");
    if (wants_sums(a))
        a.workspace =
            GFLV2_WORKSPACE(call, cuda::dgqp_workspace(a.levels, a.batch, summed_features(a), summed_hidden(a)));
    return a;
}

}  // namespace

void bind_dgqp(py::module_& m) {
    GFLV2_BIND(m, dgqp_forward, read_forward);
    GFLV2_BIND(m, dgqp_backward, read_backward);
}

}  // namespace gflv2
