// Python's view of the library: pointers, shapes, strides, a device index and a stream. It holds no tensor and allocates no
// device memory; gflv2/ops/native.py is its only caller.

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

using namespace gflv2;

namespace {

// Levels arrive as one flat list: `fields` integers a level. Order: logits, height, width, strides (image, side, bin, y, x), and
// where gradients are wanted their pointer and five strides.
LevelTable read_levels(const std::vector<std::int64_t>& numbers, int count, const std::vector<double>& strides, bool gradient) {
    const std::size_t fields = gradient ? 14 : 8;
    if (count < 1 || count > max_levels) throw std::invalid_argument("levels: expected 1 to 8, got " + std::to_string(count));
    if (numbers.size() != fields * count)
        throw std::invalid_argument("levels: expected " + std::to_string(fields * count) + " numbers, got " + std::to_string(numbers.size()));
    if (!strides.empty() && strides.size() != std::size_t(count))
        throw std::invalid_argument("strides: expected one per level, got " + std::to_string(strides.size()));
    LevelTable table{};
    table.count = count;
    std::int64_t first_point = 0;
    for (int l = 0; l < count; ++l) {
        const std::int64_t* n = numbers.data() + fields * l;
        Level& level = table.level[l];
        level.logits = pointer<const void>(n[0]);
        level.height = n[1];
        level.width = n[2];
        level.strides = {n[3], n[4], n[5], n[6], n[7]};
        if (gradient) {
            level.grad_logits = pointer<void>(n[8]);
            level.grad_strides = {n[9], n[10], n[11], n[12], n[13]};
        }
        level.first_point = first_point;
        level.stride = strides.empty() ? 0.0 : strides[l];
        first_point += level.height * level.width;
    }
    return table;
}

// The arguments of `integral` as Python hands them over; `result` is the output, or its gradient.
struct PyIntegral {
    IntegralArguments arguments{};

    PyIntegral(int dtype, int bins, std::int64_t batch, int level_count, const std::vector<std::int64_t>& levels, bool gradient,
               std::int64_t projection, std::int64_t scales, std::int64_t row_points, std::int64_t row_strides,
               const std::vector<double>& strides, double offset) {
        if (dtype < 0 || dtype > 3) throw std::invalid_argument("dtype: expected 0 to 3, got " + std::to_string(dtype));
        if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
        IntegralArguments& a = arguments;
        a.dtype = Dtype(dtype);
        a.bins = bins;
        a.batch = batch;
        a.levels = read_levels(levels, level_count, strides, gradient);
        for (int l = 0; l < a.levels.count; ++l) a.points += a.levels.level[l].height * a.levels.level[l].width;
        a.projection = pointer<const void>(projection);
        a.scales = pointer<const void>(scales);
        a.row_points = pointer<const void>(row_points);
        a.row_strides = pointer<const void>(row_strides);
        a.decode = row_points != 0 || !strides.empty();
        a.offset = offset;
        a.grad_logits = gradient;
    }
};

// device < 0: the CPU, with `where` threads; else that CUDA device, and `where` is the stream.
void integral_forward(int device, std::int64_t where, int dtype, int bins, std::int64_t batch, int level_count,
                      const std::vector<std::int64_t>& levels, std::int64_t projection, std::int64_t scales, std::int64_t row_points,
                      std::int64_t row_strides, const std::vector<double>& strides, double offset, std::int64_t out) {
    PyIntegral call(dtype, bins, batch, level_count, levels, false, projection, scales, row_points, row_strides, strides, offset);
    call.arguments.out = pointer<void>(out);
    const py::gil_scoped_release release;
    if (device < 0) return cpu::integral_forward(call.arguments, int(where));
#if defined(GFLV2_HAS_CUDA)
    return cuda::integral_forward(call.arguments, {device, pointer<void>(where)});
#else
    throw std::runtime_error("the native library was built without CUDA");
#endif
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
    const py::gil_scoped_release release;
    if (device < 0) return cpu::integral_backward(call.arguments, int(where));
#if defined(GFLV2_HAS_CUDA)
    return cuda::integral_backward(call.arguments, {device, pointer<void>(where)});
#else
    throw std::runtime_error("the native library was built without CUDA");
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "The native kernels of gflv2. Called by gflv2.ops.native alone.";
    m.def("integral_forward", &integral_forward);
    m.def("integral_backward", &integral_backward);
    bind_atss(m);
    m.def("instruction_set", [] { return std::string(instruction_set()); });
    m.def("instruction_sets", &instruction_sets);
    m.def("set_instruction_set", [](const std::string& name) {
        if (!set_instruction_set(name.c_str()))
            throw std::invalid_argument("instruction set: expected one that was built and that this processor has, got " + name);
    });
#if defined(GFLV2_HAS_CUDA)
    m.def("cuda_problem", &cuda::problem);
    m.def("integral_workspace", [](const std::vector<std::int64_t>& levels, int level_count, bool gradient, std::int64_t batch, int projection_bins) {
        return cuda::integral_workspace(read_levels(levels, level_count, {}, gradient), batch, projection_bins);
    });
    m.attr("cuda_architectures") = GFLV2_CUDA_ARCHITECTURES;
#endif
}
