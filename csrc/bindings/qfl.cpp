// Python's view of `qfl`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

QflArguments read(Fields& fields, bool backward) {
    QflArguments a{};
    const LevelList list = fields.levels("levels", backward ? "grad_levels" : nullptr, 1, {});
    if (list.channels < 1) throw std::invalid_argument("classes: expected at least 1, got " + std::to_string(list.channels));
    a.classes = list.channels;
    a.batch = list.batch;
    a.points = list.points;
    a.levels = list.table;
    a.form = QflForm(fields.number("form", 0, 2));
    GFLV2_READ(dtype);
    GFLV2_READ(quality);
    GFLV2_READ(labels);
    GFLV2_READ(beta);
    GFLV2_READ(reduction);
    const py::handle scores = fields.get("scores");
    a.scores = address_of(scores);
    if (a.labels == nullptr) {
        const Numbers steps(scores.attr("stride")());
        a.score_row = steps.at[0];
        a.score_class = steps.at[1];
    }
    return a;
}

void forward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("qfl_forward", given);
    QflArguments a = read(fields, false);
    fields.finish();
    if (a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::qfl_workspace(a.levels, a.batch));
    GFLV2_RUN(qfl_forward, call, a);
}

void backward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("qfl_backward", given);
    QflArguments a = read(fields, true);
    a.grad_logits = fields.given_any("grad_levels");
    GFLV2_READ(grad_quality);
    fields.finish();
    GFLV2_RUN(qfl_backward, call, a);
}

}  // namespace

void bind_qfl(py::module_& m) {
    m.def("qfl_forward", &forward);
    m.def("qfl_backward", &backward);
}

}  // namespace gflv2
