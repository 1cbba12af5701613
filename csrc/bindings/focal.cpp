// Python's view of `focal`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

FocalKind kind_of(const std::string& name) {
    if (name == "sigmoid_focal") return FocalKind::sigmoid_focal;
    if (name == "varifocal") return FocalKind::varifocal;
    if (name == "matchability_aware") return FocalKind::matchability_aware;
    if (name == "iou_aware_bce") return FocalKind::iou_aware_bce;
    throw std::invalid_argument("kind: expected sigmoid_focal, varifocal, matchability_aware or iou_aware_bce, got " +
                                name);
}

template <bool backward> FocalArguments read(Fields& fields, Call& call) {
    FocalArguments a{};
    const LevelList list = fields.levels("logits", backward ? "grad_logits" : nullptr, 1);
    take_levels(a, list);
    a.classes = check_classes(list.channels);
    a.grad_logits = list.gradients;
    a.kind = kind_of(py::cast<std::string>(fields.get("kind")));
    fields.read("labels", a.labels, "scores", a.scores, "alpha", a.alpha, "negative", a.negative, "gamma", a.gamma,
                "iou_weighted", a.iou_weighted, "detach", a.detach);
    fields.read_reduction(a.reduction, backward);
    if (!backward && a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::focal_workspace(a.levels, a.batch));
    return a;
}

}  // namespace

void bind_focal(py::module_& m) {
    GFLV2_BIND(m, focal_forward, read<false>);
    GFLV2_BIND(m, focal_backward, read<true>);
}

}  // namespace gflv2
