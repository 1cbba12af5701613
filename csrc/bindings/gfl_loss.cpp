// Python's view of the box losses of `gfl_loss`.

#include "bindings/dgqp.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

void forward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("box_loss_forward", given);
    BoxLossArguments a{};
    const LevelList list = fields.levels("levels", nullptr, 4, fields.numbers("strides"));
    check_bins(list.channels);
    a.bins = list.channels;
    a.batch = list.batch;
    a.points = list.points;
    a.levels = list.table;
    GFLV2_READ(dtype);
    GFLV2_READ(scales);
    GFLV2_READ(projection);
    GFLV2_READ(offset);
    GFLV2_READ(boxes);
    GFLV2_READ(weights);
    GFLV2_READ(normalisers);
    fields.read("giou_factor", a.factors[0]);
    fields.read("dfl_factor", a.factors[1]);
    GFLV2_READ(sides);
    fields.read("giou", a.losses[0]);
    fields.read("dfl", a.losses[1]);
    fields.finish();
    a.workspace = GFLV2_WORKSPACE(call, cuda::box_loss_forward_workspace(a.levels, a.batch));
    GFLV2_RUN(box_loss_forward, call, a);
}

SavedBoxLoss read_saved(Fields& fields) {
    SavedBoxLoss a{};
    GFLV2_READ(sides);
    GFLV2_READ(weights);
    GFLV2_READ(projection);
    GFLV2_READ(normalisers);
    fields.read("giou_factor", a.factors[0]);
    fields.read("dfl_factor", a.factors[1]);
    fields.read("grad_giou", a.grad_losses[0]);
    fields.read("grad_dfl", a.grad_losses[1]);
    return a;
}

void backward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("box_loss_backward", given);
    BoxLossBackwardArguments a{read_dgqp(fields, true), read_saved(fields)};
    fields.finish();
    if (wants_sums(a.dgqp))
        a.dgqp.workspace = GFLV2_WORKSPACE(
            call, cuda::box_loss_backward_workspace(a.dgqp.levels, a.dgqp.batch, summed_features(a.dgqp), summed_hidden(a.dgqp)));
    GFLV2_RUN(box_loss_backward, call, a);
}

}  // namespace

void bind_gfl_loss(py::module_& m) {
    m.def("box_loss_forward", &forward);
    m.def("box_loss_backward", &backward);
}

}  // namespace gflv2
