// Python's view of `giou` and `iou`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

GiouArguments read(Fields& fields, bool backward) {
    GiouArguments a{};
    const Rows pred = fields.rows("pred");
    a.dtype = pred.dtype;
    a.rows = pred.rows;
    a.pred = pred.at;
    a.row_stride = pred.row_stride;
    a.side_stride = pred.column_stride;
    fields.read("target", a.target);
    fields.read("loss", a.loss);
    fields.read("eps", a.eps);
    fields.read_reduction(a.reduction, backward);
    return a;
}

GiouArguments read_forward(Fields& fields, Call& call) {
    GiouArguments a = read(fields, false);
    if (a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::giou_workspace(a.rows));
    return a;
}

GiouArguments read_backward(Fields& fields, Call&) {
    GiouArguments a = read(fields, true);
    fields.read("grad_pred", a.grad_pred, a.dtype);
    fields.read("grad_target", a.grad_target, arithmetic(a.dtype));
    return a;
}

}  // namespace

void bind_giou(py::module_& m) {
    GFLV2_BIND(m, giou_forward, read_forward);
    GFLV2_BIND(m, giou_backward, read_backward);
}

}  // namespace gflv2
