// Python's view of `giou`, `iou` and `ciou`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

template <bool backward> GiouArguments read(Fields& fields, Call& call) {
    GiouArguments a{};
    const Rows pred = fields.rows("pred");
    a.dtype = pred.dtype;
    a.rows = pred.rows;
    a.pred = pred.at;
    a.row_stride = pred.row_stride;
    a.side_stride = pred.column_stride;
    a.form = BoxForm(fields.integer("form", 0, int(BoxForm::ciou_mmdet)));
    fields.read("target", a.target, "eps", a.eps);
    fields.read_reduction(a.reduction, backward);
    if (backward) {
        fields.read_written(a.dtype, "grad_pred", a.grad_pred);
        fields.read_written(arithmetic(a.dtype), "grad_target", a.grad_target);
    } else if (a.reduction.total) {
        a.workspace = GFLV2_WORKSPACE(call, cuda::giou_workspace(a.rows));
    }
    return a;
}

}  // namespace

void bind_giou(py::module_& m) {
    GFLV2_BIND(m, giou_forward, read<false>);
    GFLV2_BIND(m, giou_backward, read<true>);
}

}  // namespace gflv2
