// Python's view of `integral`.

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

// The arguments of `integral` as Python hands them over; `result` is the output, or its gradient.
struct PyIntegral {
    IntegralArguments arguments{};

    PyIntegral(int dtype, int bins, std::int64_t batch, int level_count, const std::vector<std::int64_t>& levels, bool gradient,
               std::int64_t projection, std::int64_t scales, std::int64_t row_points, std::int64_t row_strides,
               const std::vector<double>& strides, double offset) {
        if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
        IntegralArguments& a = arguments;
        a.dtype = read_dtype(dtype);
        a.bins = bins;
        a.batch = batch;
        a.levels = read_levels(levels, level_count, strides, gradient);
        a.points = points_of(a.levels);
        a.projection = pointer<const void>(projection);
        a.scales = pointer<const void>(scales);
        a.row_points = pointer<const void>(row_points);
        a.row_strides = pointer<const void>(row_strides);
        a.decode = row_points != 0 || !strides.empty();
        a.offset = offset;
        a.grad_logits = gradient;
    }
};

void integral_forward(int device, std::int64_t where, int dtype, int bins, std::int64_t batch, int level_count,
                      const std::vector<std::int64_t>& levels, std::int64_t projection, std::int64_t scales, std::int64_t row_points,
                      std::int64_t row_strides, const std::vector<double>& strides, double offset, std::int64_t out) {
    PyIntegral call(dtype, bins, batch, level_count, levels, false, projection, scales, row_points, row_strides, strides, offset);
    call.arguments.out = pointer<void>(out);
    GFLV2_RUN(integral_forward, device, where, call.arguments);
}

void integral_backward(int device, std::int64_t where, int dtype, int bins, std::int64_t batch, int level_count,
                       const std::vector<std::int64_t>& levels, bool gradient, std::int64_t projection, std::int64_t scales,
                       std::int64_t row_points, std::int64_t row_strides, const std::vector<double>& strides, double offset,
                       std::int64_t grad_out, std::int64_t grad_projection, std::int64_t grad_scales, std::int64_t workspace) {
    PyIntegral call(dtype, bins, batch, level_count, levels, gradient, projection, scales, row_points, row_strides, strides, offset);
    call.arguments.grad_out = pointer<const void>(grad_out);
    call.arguments.grad_projection = pointer<void>(grad_projection);
    call.arguments.grad_scales = pointer<void>(grad_scales);
    call.arguments.workspace = pointer<void>(workspace);
    GFLV2_RUN(integral_backward, device, where, call.arguments);
}

}  // namespace

void bind_integral(py::module_& m) {
    m.def("integral_forward", &integral_forward);
    m.def("integral_backward", &integral_backward);
#if defined(GFLV2_HAS_CUDA)
    m.def("integral_workspace", [](const std::vector<std::int64_t>& levels, int level_count, bool gradient, std::int64_t batch, int projection_bins) {
        return cuda::integral_workspace(read_levels(levels, level_count, {}, gradient), batch, projection_bins);
    });
#endif
}

}  // namespace gflv2
