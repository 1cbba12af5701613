// What the bindings of the operations share; each has a file of its own beside this one.
//
// One way for every operation: Python hands over named arguments, and a `Fields` reads each into the field of the C++ struct
// by its name. A tensor is whatever has data_ptr(), shape, stride() and dtype: the library is built without torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gflv2/api/reduction.hpp"
#include "gflv2/types.hpp"
#if defined(GFLV2_SIMT)
#include "simt/recorder.hpp"
#endif

namespace gflv2 {

namespace py = pybind11;

// The levels of a call, and what they have in common. Rows (M, 4, R) or (N, C) are one level of one image.
struct LevelList {
    LevelTable table{};
    Dtype dtype{};
    std::int64_t batch = 0, points = 0;
    int channels = 0;  // of a side: R; of a score map: C
    bool gradients = false;
};

// A tensor (N, columns) with its strides, in elements.
struct Rows {
    void* at = nullptr;
    std::int64_t rows = 0, row_stride = 0, column_stride = 0;
    int columns = 0;
    Dtype dtype{};
};

// A tensor of three dimensions with its strides, in elements.
struct Cube {
    void* at = nullptr;
    std::int64_t shape[3] = {}, strides[3] = {};
    Dtype dtype{};
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

    // Memory on the call's device that lives as long as this object: the launch is in the stream by then.
    void* allocate(std::size_t bytes);
    // A value on the host that lives as long.
    template <class T> const T* keep(std::vector<T> values) {
        auto kept = std::make_shared<std::vector<T>>(std::move(values));
        host.push_back(kept);
        return kept->data();
    }

    int device;
    std::int64_t where;

private:
    py::object allocator;
    py::list memory;
    std::vector<std::shared_ptr<void>> host;
};

// The named arguments of a call. Each is read once; one that is missing, or that nobody reads, is an error.
class Fields {
public:
    Fields(const char* operation, const py::dict& given) : operation(operation), given(given) {}

    // Names, each with its field: the address of a tensor, null for None; or a value.
    template <class T, class... More> void read(const char* name, T& field, More&&... more) {
        take(name, field);
        if constexpr (sizeof...(more) > 0) read(std::forward<More>(more)...);
    }
    // The same for tensors that the kernel writes. They are checked: contiguous, and of that dtype.
    template <class T, class... More> void read_written(Dtype dtype, const char* name, T*& field, More&&... more) {
        check_dense(name, dtype);
        take(name, field);
        if constexpr (sizeof...(more) > 0) read_written(dtype, std::forward<More>(more)...);
    }
    // What becomes of the losses of the rows: `reduction`, and forward `out`; backward `grad`, and `out` where it is given.
    void read_reduction(Reduction& reduction, bool backward);

    int integer(const char* name, int least, int most = INT32_MAX);
    std::vector<std::int64_t> integers(const char* name);
    std::vector<double> numbers(const char* name);
    std::vector<py::object> objects(const char* name);
    // An empty list: no memory for any image; one padded tensor: all of them; else one tensor an image.
    std::vector<ImageMemory> images(const char* name, std::int64_t batch, std::size_t element_size,
                                    int padded_dimensions);
    // Tensors (B, sides·channels, H, W), or one of rows. `gradients` (or null) names tensors like them, or an empty list.
    LevelList levels(const char* name, const char* gradients, int sides, const std::vector<double>& strides = {});
    Rows rows(const char* name);
    Cube cube(const char* name);
    py::handle get(const char* name);
    void* address(const char* name);
    void finish() const;  // raises where something was given that nobody has read

private:
    template <class T> void take(const char* name, T*& field) { field = static_cast<T*>(address(name)); }
    void take(const char* name, bool& field) { field = py::cast<bool>(get(name)); }
    void take(const char* name, double& field) { field = py::cast<double>(get(name)); }
    void take(const char* name, float& field) { field = float(py::cast<double>(get(name))); }
    void check_dense(const char* name, Dtype dtype);
    py::handle peek(const char* name) const;

    const char* operation;
    const py::dict& given;
    std::size_t taken = 0;
};

// The named argument "valid": rows and columns of each level whose cells count, image by image; empty: all do.
class ValidCells {
public:
    // shapes: height and width of each level.
    ValidCells(Fields& fields, std::vector<std::int64_t> shapes, std::int64_t batch);
    void write(std::int64_t image, std::int32_t* rows, std::int32_t* columns) const;

private:
    std::vector<std::int64_t> shapes, given;
};

void* address_of(py::handle tensor);
void set_dtypes(const py::list& dtypes);

// What the arguments of an operation over levels, or over rows of logits, have in common.
template <class Arguments> void take_levels(Arguments& a, const LevelList& list) {
    a.dtype = list.dtype;
    a.batch = list.batch;
    a.points = list.points;
    a.levels = list.table;
}
template <class Arguments> void take_gradient_rows(Arguments& a, const Rows& gradient) {
    a.grad_logits = gradient.at;
    a.grad_row_stride = gradient.row_stride;
    a.grad_bin_stride = gradient.column_stride;
}

inline int check_bins(int bins) {
    if (bins < min_bins || bins > max_bins)
        throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
    return bins;
}
inline int check_classes(int classes) {
    if (classes < 1) throw std::invalid_argument("classes: expected at least 1, got " + std::to_string(classes));
    return classes;
}
// Both kinds of logits in one precision.
inline void check_mixed(Dtype first, Dtype second) {
    if ((first == Dtype::float64) != (second == Dtype::float64))
        throw std::invalid_argument("logits: expected float64 in both, or in neither");
}
// The dtype of the arithmetic, S.
inline Dtype arithmetic(Dtype dtype) { return dtype == Dtype::float64 ? dtype : Dtype::float32; }

// Calls gflv2::cpu::name or gflv2::cuda::name(arguments, …) without the interpreter's lock.
template <class Arguments>
void run(const Call& call, const Arguments& arguments, void (*on_cpu)(const Arguments&, int),
         void (*on_cuda)(const Arguments&, Place)) {
    const int device = call.device;
    const std::int64_t where = call.where;
    const py::gil_scoped_release release;
    if (device < 0) return on_cpu(arguments, int(where));
    if (on_cuda == nullptr) throw std::runtime_error("the native library was built without CUDA");
    on_cuda(arguments, {device, reinterpret_cast<void*>(where)});
}
#if defined(GFLV2_SIMT)
#define GFLV2_RUN(name, call, arguments) \
    simt::run(#name, arguments, &cuda::name, {call.device, reinterpret_cast<void*>(call.where)})
#elif defined(GFLV2_HAS_CUDA)
#define GFLV2_RUN(name, call, arguments) run(call, arguments, &cpu::name, &cuda::name)
#else
#define GFLV2_RUN(name, call, arguments) run<decltype(arguments)>(call, arguments, &cpu::name, nullptr)
#endif

// Python's function `name`: read(fields, call) gives the arguments of gflv2::cpu::name and gflv2::cuda::name.
#define GFLV2_BIND(m, name, read)                                    \
    m.def(#name, [](const py::tuple& place, const py::dict& given) { \
        Call call(place);                                            \
        Fields fields(#name, given);                                 \
        auto arguments = read(fields, call);                         \
        fields.finish();                                             \
        GFLV2_RUN(name, call, arguments);                            \
    })

// Memory for the partial sums of a GPU; `bytes` is evaluated there alone.
#if defined(GFLV2_HAS_CUDA)
#define GFLV2_WORKSPACE(call, bytes) (call.device < 0 ? nullptr : call.allocate(bytes))
#else
#define GFLV2_WORKSPACE(call, bytes) (static_cast<void>(call), nullptr)
#endif

// The operations; `bind_atss` binds the functions of `atss`.
#define GFLV2_OPERATIONS(apply)                                                                                    \
    apply(atss) apply(decode) apply(dfl) apply(dgqp) apply(distribution_kl) apply(dynamic_soft_label) apply(focal) \
        apply(gfl_loss) apply(gfl_targets) apply(giou) apply(integral) apply(qfl) apply(task_aligned)
#define GFLV2_DECLARE(name) void bind_##name(py::module_& m);
GFLV2_OPERATIONS(GFLV2_DECLARE)

}  // namespace gflv2
