// Python's view of the box losses of `gfl_loss`.

#include "bindings/dgqp.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

void read_factors(py::handle pair, double* factors) {
    const py::tuple given = py::reinterpret_borrow<py::tuple>(pair);
    if (given.size() != 2) throw std::invalid_argument("factors: expected two, got " + std::to_string(given.size()));
    for (int i = 0; i < 2; ++i) factors[i] = py::cast<double>(given[i]);
}

BoxLossArguments read_forward(Fields& fields, Call& call) {
    BoxLossArguments a{};
    const LevelList list = fields.levels("box_logits", nullptr, 4, fields.numbers("strides"));
    const Dtype s = arithmetic(list.dtype);
    take_levels(a, list);
    a.bins = check_bins(list.channels);
    fields.read("scales", a.scales, "projection", a.projection, "offset", a.offset, "boxes", a.boxes, "weights",
                a.weights, "normalisers", a.normalisers);
    read_factors(fields.get("factors"), a.factors);
    fields.read_written(s, "sides", a.sides, "giou", a.losses[0], "dfl", a.losses[1]);
    a.workspace = GFLV2_WORKSPACE(call, cuda::box_loss_forward_workspace(a.levels, a.batch));
    return a;
}

BoxLossBackwardArguments read_backward(Fields& fields, Call& call) {
    BoxLossBackwardArguments a{read_dgqp(fields, "box_logits", "grad_quality"), {}};
    DgqpArguments& dgqp = a.dgqp;
    const py::handle saved = fields.get("box");
    a.box.sides = address_of(saved.attr("sides"));
    a.box.weights = address_of(saved.attr("weights"));
    a.box.projection = address_of(saved.attr("projection"));
    a.box.normalisers = address_of(saved.attr("normalisers"));
    a.box.grad_losses[0] = address_of(saved.attr("grad_giou"));
    a.box.grad_losses[1] = address_of(saved.attr("grad_dfl"));
    read_factors(saved.attr("factors"), a.box.factors);
    if (wants_sums(dgqp))
        dgqp.workspace = GFLV2_WORKSPACE(
            call,
            cuda::box_loss_backward_workspace(dgqp.levels, dgqp.batch, summed_features(dgqp), summed_hidden(dgqp)));
    return a;
}

}  // namespace

void bind_gfl_loss(py::module_& m) {
    GFLV2_BIND(m, box_loss_forward, read_forward);
    GFLV2_BIND(m, box_loss_backward, read_backward);
}

}  // namespace gflv2
