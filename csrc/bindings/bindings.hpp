// What the bindings of the operations share; each has a file of its own beside this one.
//
// One way for every operation: Python names each field of the arguments' struct, and `Fields` reads it by that name. A tensor
// is whatever has data_ptr(), shape and stride(): the library is built without torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"
#if defined(GFLV2_SIMT)
#include "simt/recorder.hpp"
#endif

namespace gflv2 {

namespace py = pybind11;

// The device address of a tensor; null for None.
void* address_of(py::handle tensor);

// Shape or strides of a tensor, at most four numbers.
struct Numbers {
    int count = 0;
    std::int64_t at[4]{};

    explicit Numbers(py::handle sequence);
};

// The levels of a call, and what they have in common. Rows (M, 4, R) or (N, C) are one level of one image.
struct LevelList {
    LevelTable table{};
    std::int64_t batch = 0, points = 0;
    int channels = 0;  // of a side: R; of a score map: C
};

// A tensor (N, columns) with its strides, in elements; all 0 for None.
struct Rows {
    void* at = nullptr;
    std::int64_t rows = 0, row_stride = 0, column_stride = 0;
    int columns = 0;
};

// The boxes (or labels) of one image.
struct ImageMemory {
    char* at;
    std::int64_t count;
};

// Where a call runs: (device, where, allocate). device < 0: the CPU, with `where` threads; else that CUDA device, `where` is
// the stream, and allocate(bytes) gives memory there.
class Call {
   public:
    explicit Call(const py::tuple& place);

    // Memory that lives as long as this object: the launch is in the stream by then.
    void* allocate(std::size_t bytes);

    int device;
    std::int64_t where;

   private:
    py::object allocator;
    py::list memory;
};

// The keyword arguments of a call. Every field is read once; one that is missing, or that nobody reads, is an error.
class Fields {
   public:
    Fields(const char* operation, const py::kwargs& given) : operation(operation), given(given) {}

    template <class T> void read(const char* name, T*& field) { field = static_cast<T*>(address_of(get(name))); }
    void read(const char* name, bool& field) { field = py::cast<bool>(get(name)); }
    void read(const char* name, int& field) { field = py::cast<int>(get(name)); }
    void read(const char* name, double& field) { field = py::cast<double>(get(name)); }
    void read(const char* name, float& field) { field = float(py::cast<double>(get(name))); }
    void read(const char* name, Dtype& field) { field = Dtype(number(name, 0, 3)); }
    // A struct of its own: the fields of a dictionary.
    void read(const char* name, Reduction& field);

    // An integer within bounds.
    int number(const char* name, int least, int most = INT32_MAX);
    std::vector<std::int64_t> integers(const char* name);
    std::vector<double> numbers(const char* name);
    // None: no memory for any image; one tensor: all images, padded; else a list of one tensor an image.
    std::vector<ImageMemory> images(const char* name, std::int64_t batch, std::size_t element_size);
    // A list of tensors (B, sides·channels, H, W), or one of rows; `gradients` (or null) names a list like it, or an empty one.
    LevelList levels(const char* name, const char* gradients, int sides, const std::vector<double>& strides);
    Rows rows(const char* name);
    bool given_any(const char* name) { return py::len(peek(name)) > 0; }
    py::handle get(const char* name);
    // Raises where a field was given that nobody has read.
    void finish() const;

   private:
    py::handle peek(const char* name) const;

    const char* operation;
    const py::kwargs& given;
    std::size_t taken = 0;
};

// The field "valid": rows and columns of each level whose cells count, image by image; empty: all do.
class ValidCells {
   public:
    // shapes: height and width of each level.
    ValidCells(Fields& fields, const std::vector<std::int64_t>& shapes, std::int64_t batch);
    void write(std::int64_t image, std::int32_t* rows, std::int32_t* columns) const;

   private:
    const std::vector<std::int64_t>& shapes;
    std::vector<std::int64_t> given;
};

// A field of the struct `a` by its own name.
#define GFLV2_READ(field) fields.read(#field, a.field)

inline void check_bins(int bins) {
    if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
}

// Calls gflv2::cpu::name or gflv2::cuda::name(arguments, …) without the interpreter's lock.
template <class Arguments>
void run(const Call& call, const Arguments& arguments, void (*on_cpu)(const Arguments&, int), void (*on_cuda)(const Arguments&, Place)) {
    const int device = call.device;
    const std::int64_t where = call.where;
    const py::gil_scoped_release release;
    if (device < 0) return on_cpu(arguments, int(where));
    if (on_cuda == nullptr) throw std::runtime_error("the native library was built without CUDA");
    on_cuda(arguments, {device, reinterpret_cast<void*>(where)});
}
#if defined(GFLV2_SIMT)
#define GFLV2_RUN(name, call, arguments) simt::run(#name, arguments, &cuda::name, {call.device, reinterpret_cast<void*>(call.where)})
#elif defined(GFLV2_HAS_CUDA)
#define GFLV2_RUN(name, call, arguments) run(call, arguments, &cpu::name, &cuda::name)
#else
#define GFLV2_RUN(name, call, arguments) run<std::decay_t<decltype(arguments)>>(call, arguments, &cpu::name, nullptr)
#endif

// Memory for the partial sums of a GPU; `bytes` is evaluated there alone.
#if defined(GFLV2_HAS_CUDA)
#define GFLV2_WORKSPACE(call, bytes) (call.device < 0 ? nullptr : call.allocate(bytes))
#else
#define GFLV2_WORKSPACE(call, bytes) nullptr
#endif

void bind_atss(py::module_& m);
void bind_decode(py::module_& m);
void bind_dfl(py::module_& m);
void bind_dgqp(py::module_& m);
void bind_distribution_kl(py::module_& m);
void bind_gfl_loss(py::module_& m);
void bind_gfl_targets(py::module_& m);
void bind_giou(py::module_& m);
void bind_integral(py::module_& m);
void bind_qfl(py::module_& m);

}  // namespace gflv2
