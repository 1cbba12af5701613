// Python's view of `dgqp` and `dgqp_statistics`.

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

// The arguments as Python hands them over. predictor: weight1, bias1, weight2, bias2; all 0 for the statistics alone.
struct PyDgqp {
    DgqpArguments arguments{};

    PyDgqp(int dtype, int bins, std::int64_t batch, int level_count, const std::vector<std::int64_t>& levels, bool gradient,
           std::int64_t scales, int topk, bool mean, bool variance, int hidden, const std::array<std::int64_t, 4>& predictor) {
        if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
        if (topk < 1 || topk > bins) throw std::invalid_argument("topk: expected 1 to the number of bins, got " + std::to_string(topk));
        if (hidden < 0) throw std::invalid_argument("hidden: expected at least 0, got " + std::to_string(hidden));
        for (std::int64_t tensor : predictor)
            if (hidden > 0 && tensor == 0) throw std::invalid_argument("predictor: expected four tensors");
        DgqpArguments& a = arguments;
        a.dtype = read_dtype(dtype);
        a.bins = bins;
        a.batch = batch;
        a.levels = read_levels(levels, level_count, {}, gradient);
        a.points = points_of(a.levels);
        a.scales = pointer<const void>(scales);
        a.topk = topk;
        a.mean = mean;
        a.variance = variance;
        a.hidden = hidden;
        a.weight1 = pointer<const void>(predictor[0]);
        a.bias1 = pointer<const void>(predictor[1]);
        a.weight2 = pointer<const void>(predictor[2]);
        a.bias2 = pointer<const void>(predictor[3]);
        a.grad_logits = gradient;
    }
};

void dgqp_forward(int device, std::int64_t where, int dtype, int bins, std::int64_t batch, int level_count,
                  const std::vector<std::int64_t>& levels, std::int64_t scales, int topk, bool mean, bool variance, int hidden,
                  const std::array<std::int64_t, 4>& predictor, std::int64_t out) {
    PyDgqp call(dtype, bins, batch, level_count, levels, false, scales, topk, mean, variance, hidden, predictor);
    call.arguments.out = pointer<void>(out);
    GFLV2_RUN(dgqp_forward, device, where, call.arguments);
}

// grad_predictor: like predictor, or all 0 where they are not wanted. box: with the box losses of `gfl_loss`, or None: without.
void dgqp_backward(int device, std::int64_t where, int dtype, int bins, std::int64_t batch, int level_count,
                   const std::vector<std::int64_t>& levels, bool gradient, std::int64_t scales, int topk, bool mean, bool variance,
                   int hidden, const std::array<std::int64_t, 4>& predictor, std::int64_t grad_out, std::int64_t grad_scales,
                   const std::array<std::int64_t, 4>& grad_predictor, const SavedBoxLoss* box, std::int64_t workspace) {
    PyDgqp call(dtype, bins, batch, level_count, levels, gradient, scales, topk, mean, variance, hidden, predictor);
    DgqpArguments& a = call.arguments;
    a.grad_out = pointer<const void>(grad_out);
    if (!grad_out && hidden > 0) throw std::invalid_argument("grad_out: expected a tensor with a predictor");
    a.grad_scales = pointer<void>(grad_scales);
    a.grad_weight1 = pointer<void>(grad_predictor[0]);
    a.grad_bias1 = pointer<void>(grad_predictor[1]);
    a.grad_weight2 = pointer<void>(grad_predictor[2]);
    a.grad_bias2 = pointer<void>(grad_predictor[3]);
    a.workspace = pointer<void>(workspace);
    if (!box) return GFLV2_RUN(dgqp_backward, device, where, a);
    const BoxLossBackwardArguments both{a, *box};
    GFLV2_RUN(box_loss_backward, device, where, both);
}

}  // namespace

void bind_dgqp(py::module_& m) {
    // Local: the library and the emulation of the tests may be loaded in one process.
    py::class_<SavedBoxLoss>(m, "SavedBoxLoss", py::module_local())
        .def(py::init([](std::int64_t sides, std::int64_t weights, std::int64_t projection, std::int64_t grad_losses, std::int64_t normaliser,
                         double giou_factor, double dfl_factor) {
            return SavedBoxLoss{pointer<const void>(sides), pointer<const void>(weights), pointer<const void>(projection),
                                 pointer<const void>(grad_losses), pointer<const void>(normaliser), {giou_factor, dfl_factor}};
        }));
    m.def("dgqp_forward", &dgqp_forward);
    m.def("dgqp_backward", &dgqp_backward);
#if defined(GFLV2_HAS_CUDA)
    m.def("dgqp_workspace", [](const std::vector<std::int64_t>& levels, int level_count, bool gradient, std::int64_t batch,
                               int features, int hidden) {
        return cuda::dgqp_workspace(read_levels(levels, level_count, {}, gradient), batch, features, hidden);
    });
#endif
}

}  // namespace gflv2
