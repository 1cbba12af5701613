// Python's view of `giou` and `iou`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

GiouArguments read(Fields& fields) {
    GiouArguments a{};
    const Rows pred = fields.rows("pred");
    a.pred = pred.at;
    a.rows = pred.rows;
    a.row_stride = pred.row_stride;
    a.side_stride = pred.column_stride;
    GFLV2_READ(dtype);
    GFLV2_READ(loss);
    GFLV2_READ(target);
    GFLV2_READ(eps);
    GFLV2_READ(reduction);
    return a;
}

void forward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("giou_forward", given);
    GiouArguments a = read(fields);
    fields.finish();
    if (a.reduction.total) a.workspace = GFLV2_WORKSPACE(call, cuda::giou_workspace(a.rows));
    GFLV2_RUN(giou_forward, call, a);
}

void backward(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("giou_backward", given);
    GiouArguments a = read(fields);
    GFLV2_READ(grad_pred);
    GFLV2_READ(grad_target);
    fields.finish();
    GFLV2_RUN(giou_backward, call, a);
}

}  // namespace

void bind_giou(py::module_& m) {
    m.def("giou_forward", &forward);
    m.def("giou_backward", &backward);
}

}  // namespace gflv2
