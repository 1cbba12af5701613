// What the bindings of the operations share; each has a file of its own beside this one.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "gflv2/types.hpp"
#if defined(GFLV2_SIMT)
#include "simt/recorder.hpp"
#endif

namespace gflv2 {

namespace py = pybind11;

template <class T> T* pointer(std::int64_t address) { return reinterpret_cast<T*>(address); }

inline Dtype read_dtype(int dtype) {
    if (dtype < 0 || dtype > 3) throw std::invalid_argument("dtype: expected 0 to 3, got " + std::to_string(dtype));
    return Dtype(dtype);
}

// Levels arrive as one flat list: `fields` integers a level. Order: logits, height, width, strides (image, side, bin, y, x), and
// where gradients are wanted their pointer and five strides.
LevelTable read_levels(const std::vector<std::int64_t>& numbers, int count, const std::vector<double>& strides, bool gradient);

// Calls gflv2::cpu::name or gflv2::cuda::name(arguments, …) without the interpreter's lock. device < 0: the CPU, with `where`
// threads; else that CUDA device, and `where` is the stream.
template <class Arguments>
void run(int device, std::int64_t where, const Arguments& arguments, void (*on_cpu)(const Arguments&, int),
         void (*on_cuda)(const Arguments&, Place)) {
    const py::gil_scoped_release release;
    if (device < 0) return on_cpu(arguments, int(where));
    if (on_cuda == nullptr) throw std::runtime_error("the native library was built without CUDA");
    on_cuda(arguments, {device, pointer<void>(where)});
}
#if defined(GFLV2_SIMT)
#define GFLV2_RUN(name, device, where, arguments) simt::run(#name, arguments, &cuda::name, {device, pointer<void>(where)})
#elif defined(GFLV2_HAS_CUDA)
#define GFLV2_RUN(name, device, where, arguments) run(device, where, arguments, &cpu::name, &cuda::name)
#else
#define GFLV2_RUN(name, device, where, arguments) run<std::decay_t<decltype(arguments)>>(device, where, arguments, &cpu::name, nullptr)
#endif

// Points of all levels of one image.
inline std::int64_t points_of(const LevelTable& levels) {
    std::int64_t points = 0;
    for (int l = 0; l < levels.count; ++l) points += levels.level[l].height * levels.level[l].width;
    return points;
}

void bind_atss(py::module_& m);
void bind_decode(py::module_& m);
void bind_dgqp(py::module_& m);
void bind_gfl_loss(py::module_& m);
void bind_integral(py::module_& m);
void bind_losses(py::module_& m);

}  // namespace gflv2
