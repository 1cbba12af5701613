// Python's view of the losses: `qfl`, `dfl`, `distribution_kl`, `giou` and `iou`.

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

// As Python hands it over.
struct PyReduction {
    bool total;
    std::int64_t weight;
    double divisor;
    std::int64_t factor, out, grad_out;

    Reduction read() const {
        Reduction r{};
        r.total = total;
        r.weight = pointer<const void>(weight);
        r.divisor = divisor;
        r.factor = pointer<const void>(factor);
        r.out = pointer<void>(out);
        r.grad_out = pointer<const void>(grad_out);
        return r;
    }
};

// `scores`: address, and for a dense target its two strides. `gradients`: whether levels carry them; then grad_quality.
void qfl(bool backward, int device, std::int64_t where, int dtype, int form, int classes, std::int64_t batch, int level_count,
         const std::vector<std::int64_t>& levels, bool grad_logits, std::int64_t quality, std::int64_t labels, std::int64_t scores,
         std::int64_t score_row, std::int64_t score_class, double beta, const PyReduction& reduction, std::int64_t grad_quality,
         std::int64_t workspace) {
    if (form < 0 || form > 2) throw std::invalid_argument("form: expected 0 to 2, got " + std::to_string(form));
    if (classes < 1) throw std::invalid_argument("classes: expected at least 1, got " + std::to_string(classes));
    QflArguments a{};
    a.dtype = read_dtype(dtype);
    a.form = QflForm(form);
    a.classes = classes;
    a.batch = batch;
    a.levels = read_levels(levels, level_count, {}, grad_logits);
    a.points = points_of(a.levels);
    a.quality = pointer<const void>(quality);
    a.labels = pointer<const std::int64_t>(labels);
    a.scores = pointer<const void>(scores);
    a.score_row = score_row;
    a.score_class = score_class;
    a.beta = beta;
    a.reduction = reduction.read();
    a.grad_logits = grad_logits;
    a.grad_quality = pointer<void>(grad_quality);
    a.workspace = pointer<void>(workspace);
    if (backward) GFLV2_RUN(qfl_backward, device, where, a);
    else GFLV2_RUN(qfl_forward, device, where, a);
}

void dfl(bool backward, int device, std::int64_t where, int dtype, int bins, std::int64_t rows, std::int64_t logits, std::int64_t row_stride,
         std::int64_t bin_stride, std::int64_t target, const PyReduction& reduction, std::int64_t grad_logits, std::int64_t grad_row_stride,
         std::int64_t grad_bin_stride, std::int64_t workspace) {
    if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
    DflArguments a{};
    a.dtype = read_dtype(dtype);
    a.bins = bins;
    a.rows = rows;
    a.logits = pointer<const void>(logits);
    a.row_stride = row_stride;
    a.bin_stride = bin_stride;
    a.target = pointer<const void>(target);
    a.reduction = reduction.read();
    a.grad_logits = pointer<void>(grad_logits);
    a.grad_row_stride = grad_row_stride;
    a.grad_bin_stride = grad_bin_stride;
    a.workspace = pointer<void>(workspace);
    if (backward) GFLV2_RUN(dfl_backward, device, where, a);
    else GFLV2_RUN(dfl_forward, device, where, a);
}

// Of (N, R) logits: dtype, address, row stride, bin stride.
LogitRows read_rows(const std::array<std::int64_t, 4>& numbers) {
    return {read_dtype(int(numbers[0])), pointer<const void>(numbers[1]), numbers[2], numbers[3]};
}

void distribution_kl(bool backward, int device, std::int64_t where, int bins, std::int64_t rows, const std::array<std::int64_t, 4>& logits,
                     const std::array<std::int64_t, 4>& teacher, double temperature, const PyReduction& reduction, std::int64_t grad_logits,
                     std::int64_t grad_row_stride, std::int64_t grad_bin_stride, std::int64_t workspace) {
    if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
    DistributionKlArguments a{};
    a.bins = bins;
    a.rows = rows;
    a.logits = read_rows(logits);
    a.teacher = read_rows(teacher);
    if ((a.logits.dtype == Dtype::float64) != (a.teacher.dtype == Dtype::float64))
        throw std::invalid_argument("teacher: expected float64 where the logits are, and only there");
    a.temperature = temperature;
    a.reduction = reduction.read();
    a.grad_logits = pointer<void>(grad_logits);
    a.grad_row_stride = grad_row_stride;
    a.grad_bin_stride = grad_bin_stride;
    a.workspace = pointer<void>(workspace);
    if (backward) GFLV2_RUN(distribution_kl_backward, device, where, a);
    else GFLV2_RUN(distribution_kl_forward, device, where, a);
}

void giou(bool backward, int device, std::int64_t where, int dtype, bool loss, std::int64_t rows, std::int64_t pred, std::int64_t row_stride,
          std::int64_t side_stride, std::int64_t target, double eps, const PyReduction& reduction, std::int64_t grad_pred,
          std::int64_t grad_target, std::int64_t workspace) {
    GiouArguments a{};
    a.dtype = read_dtype(dtype);
    a.loss = loss;
    a.rows = rows;
    a.pred = pointer<const void>(pred);
    a.row_stride = row_stride;
    a.side_stride = side_stride;
    a.target = pointer<const void>(target);
    a.eps = eps;
    a.reduction = reduction.read();
    a.grad_pred = pointer<void>(grad_pred);
    a.grad_target = pointer<void>(grad_target);
    a.workspace = pointer<void>(workspace);
    if (backward) GFLV2_RUN(giou_backward, device, where, a);
    else GFLV2_RUN(giou_forward, device, where, a);
}

}  // namespace

void bind_losses(py::module_& m) {
    py::class_<PyReduction>(m, "Reduction")
        .def(py::init([](bool total, std::int64_t weight, double divisor, std::int64_t factor, std::int64_t out, std::int64_t grad_out) {
            return PyReduction{total, weight, divisor, factor, out, grad_out};
        }));
    m.def("qfl", &qfl);
    m.def("dfl", &dfl);
    m.def("distribution_kl", &distribution_kl);
    m.def("giou", &giou);
#if defined(GFLV2_HAS_CUDA)
    m.def("qfl_workspace", [](const std::vector<std::int64_t>& levels, int level_count, bool gradient, std::int64_t batch) {
        return cuda::qfl_workspace(read_levels(levels, level_count, {}, gradient), batch);
    });
    m.def("dfl_workspace", &cuda::dfl_workspace);
    m.def("distribution_kl_workspace", &cuda::distribution_kl_workspace);
    m.def("giou_workspace", &cuda::giou_workspace);
#endif
}

}  // namespace gflv2
