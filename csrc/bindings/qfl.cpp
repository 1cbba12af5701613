// Python's view of `qfl`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

QflForm form_of(const std::string& name) {
    if (name == "logits") return QflForm::logits;
    if (name == "class_logits") return QflForm::joint;
    if (name == "probabilities") return QflForm::probabilities;
    throw std::invalid_argument("form: expected logits, class_logits or probabilities, got " + name);
}

template <bool backward> QflArguments read(Fields& fields, Call& call) {
    QflArguments a{};
    const LevelList list = fields.levels("values", backward ? "grad_values" : nullptr, 1);
    take_levels(a, list);
    a.classes = check_classes(list.channels);
    a.grad_logits = list.gradients;
    a.form = form_of(py::cast<std::string>(fields.get("form")));
    fields.read("quality", a.quality, "labels", a.labels, "beta", a.beta);
    if (a.labels) {
        fields.read("scores", a.scores);
    } else {
        const Rows scores = fields.rows("scores");
        if (scores.dtype != arithmetic(a.dtype))
            throw std::invalid_argument("scores: expected the dtype of the arithmetic");
        a.scores = scores.at;
        a.score_row = scores.row_stride;
        a.score_class = scores.column_stride;
    }
    fields.read_reduction(a.reduction, backward);
    if (backward) fields.read_written(arithmetic(a.dtype), "grad_quality", a.grad_quality);
    else if (a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::qfl_workspace(a.levels, a.batch));
    return a;
}

}  // namespace

void bind_qfl(py::module_& m) {
    GFLV2_BIND(m, qfl_forward, read<false>);
    GFLV2_BIND(m, qfl_backward, read<true>);
}

}  // namespace gflv2
