// Tensors, lists of levels, images and single fields, read from what Python hands over.

#include <algorithm>

#include "bindings/bindings.hpp"

namespace gflv2 {
namespace {

// At most four numbers: a shape, or strides.
struct Numbers {
    int count;
    std::int64_t at[4];
};

// Attribute names as Python objects, made once and never freed.
py::handle name_of(const char* text) { return PyUnicode_InternFromString(text); }

py::object call_method(py::handle object, py::handle name) {
    PyObject* const result = PyObject_CallMethodNoArgs(object.ptr(), name.ptr());
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

std::int64_t to_integer(py::handle number) {
    const std::int64_t value = PyLong_AsLongLong(number.ptr());
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

Numbers to_numbers(py::handle sequence) {
    const Py_ssize_t size = PyTuple_Check(sequence.ptr()) ? PyTuple_GET_SIZE(sequence.ptr()) : -1;
    if (size < 0 || size > 4) throw std::invalid_argument("tensor: expected at most four dimensions");
    Numbers found{int(size), {}};
    for (int i = 0; i < found.count; ++i) found.at[i] = to_integer(PyTuple_GET_ITEM(sequence.ptr(), i));
    return found;
}

Numbers shape_of(py::handle tensor) {
    static const py::handle name = name_of("shape");
    return to_numbers(py::getattr(tensor, name));
}

Numbers strides_of(py::handle tensor) {
    static const py::handle name = name_of("stride");
    return to_numbers(call_method(tensor, name));
}

// Torch's dtypes in the order of `Dtype`; they live as long as torch.
std::vector<PyObject*> known_dtypes;

Dtype dtype_of(py::handle tensor) {
    static const py::handle name = name_of("dtype");
    const py::object dtype = py::getattr(tensor, name);
    const auto found = std::find(known_dtypes.begin(), known_dtypes.end(), dtype.ptr());
    if (found == known_dtypes.end())
        throw std::invalid_argument("dtype: expected float32, float16, bfloat16 or float64, got " +
                                    std::string(py::str(dtype)));
    return Dtype(found - known_dtypes.begin());
}

// Of the view (B, sides, channels, H, W).
Strides read_strides(py::handle tensor, int sides, int channels) {
    const Numbers n = strides_of(tensor);
    if (n.count == 2) return {0, 0, n.at[1], 0, n.at[0]};
    if (n.count == 3) return {0, n.at[1], n.at[2], 0, n.at[0]};
    return {n.at[0], sides > 1 ? channels * n.at[1] : 0, n.at[1], n.at[2], n.at[3]};
}

}  // namespace

void set_dtypes(const py::list& dtypes) {
    known_dtypes.clear();
    for (const py::handle dtype : dtypes) known_dtypes.push_back(dtype.inc_ref().ptr());
}

void* address_of(py::handle tensor) {
    static const py::handle name = name_of("data_ptr");
    return tensor.is_none() ? nullptr : reinterpret_cast<void*>(to_integer(call_method(tensor, name)));
}

Call::Call(const py::tuple& place) {
    if (place.size() != 3) throw std::invalid_argument("place: expected (device, where, allocate)");
    device = py::cast<int>(place[0]);
    where = to_integer(place[1]);
    allocator = place[2];
}

void* Call::allocate(std::size_t bytes) {
    if (bytes == 0) return nullptr;
    if (device < 0) {
        // Not initialised, and large enough that the allocator aligns it.
        host.push_back(std::shared_ptr<char[]>(new char[bytes]));
        return host.back().get();
    }
    memory.append(allocator(bytes));
    return address_of(memory[memory.size() - 1]);
}

py::handle Fields::peek(const char* name) const {
    PyObject* const value = PyDict_GetItemString(given.ptr(), name);
    if (value == nullptr) throw std::invalid_argument(std::string(operation) + ": " + name + ": expected, not given");
    return value;
}

py::handle Fields::get(const char* name) {
    ++taken;
    return peek(name);
}

void* Fields::address(const char* name) { return address_of(get(name)); }

void Fields::check_dense(const char* name, Dtype dtype) {
    static const py::handle contiguous = name_of("is_contiguous");
    const py::handle tensor = peek(name);
    if (tensor.is_none() || (dtype_of(tensor) == dtype && call_method(tensor, contiguous).ptr() == Py_True)) return;
    throw std::invalid_argument(std::string(name) + ": expected a contiguous " +
                                std::string(py::str(known_dtypes.at(int(dtype)))) + " tensor, got " +
                                std::string(py::str(tensor.attr("dtype"))) + " with strides " +
                                std::string(py::str(tensor.attr("stride")())));
}

void Fields::finish() const {
    if (taken == given.size()) return;
    throw std::invalid_argument(std::string(operation) + ": expected " + std::to_string(taken) + " fields, got " +
                                std::to_string(given.size()) + ": " +
                                std::string(py::str(py::list(given.attr("keys")()))));
}

int Fields::integer(const char* name, int least, int most) {
    const std::int64_t value = to_integer(get(name));
    if (value >= least && value <= most) return int(value);
    const std::string bound =
        most == INT32_MAX ? "at least " + std::to_string(least) : std::to_string(least) + " to " + std::to_string(most);
    throw std::invalid_argument(std::string(name) + ": expected " + bound + ", got " + std::to_string(value));
}

std::vector<std::int64_t> Fields::integers(const char* name) {
    std::vector<std::int64_t> found;
    for (const py::handle item : get(name)) found.push_back(to_integer(item));
    return found;
}

std::vector<double> Fields::numbers(const char* name) {
    std::vector<double> found;
    for (const py::handle item : get(name)) found.push_back(py::cast<double>(item));
    return found;
}

std::vector<py::object> Fields::objects(const char* name) {
    std::vector<py::object> found;
    for (const py::handle item : get(name)) found.push_back(py::reinterpret_borrow<py::object>(item));
    return found;
}

void Fields::read_reduction(Reduction& reduction, bool backward) {
    const py::handle how = get("reduction");
    reduction.total = py::cast<std::string>(how.attr("reduction")) != "none";
    reduction.divisor = py::cast<double>(how.attr("divisor"));
    reduction.weight = address_of(how.attr("weight"));
    reduction.factor = address_of(how.attr("factor"));
    if (backward) read("grad", reduction.grad_out);
    if (!backward || given.contains("out")) read("out", reduction.out);
}

std::vector<ImageMemory> Fields::images(const char* name, std::int64_t batch, std::size_t element_size,
                                        int padded_dimensions) {
    const std::vector<py::object> tensors = objects(name);
    std::vector<ImageMemory> found(batch, ImageMemory{nullptr, 0});
    if (tensors.empty()) return found;
    const Numbers first = shape_of(tensors[0]);
    if (first.count == padded_dimensions) {
        char* const at = static_cast<char*>(address_of(tensors[0]));
        const std::int64_t step = strides_of(tensors[0]).at[0] * std::int64_t(element_size);
        for (std::int64_t i = 0; i < batch; ++i) found[i] = {at + i * step, first.at[1]};
        return found;
    }
    if (std::int64_t(tensors.size()) != batch)
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(batch) + " images, got " +
                                    std::to_string(tensors.size()));
    for (std::int64_t i = 0; i < batch; ++i)
        found[i] = {static_cast<char*>(address_of(tensors[i])), shape_of(tensors[i]).at[0]};
    return found;
}

Rows Fields::rows(const char* name) {
    const py::handle tensor = get(name);
    const Numbers shape = shape_of(tensor), strides = strides_of(tensor);
    if (shape.count != 2)
        throw std::invalid_argument(std::string(name) + ": expected two dimensions, got " +
                                    std::to_string(shape.count));
    return {address_of(tensor), shape.at[0], strides.at[0], strides.at[1], int(shape.at[1]), dtype_of(tensor)};
}

Volume Fields::volume(const char* name) {
    const py::handle tensor = get(name);
    const Numbers shape = shape_of(tensor), strides = strides_of(tensor);
    if (shape.count != 3)
        throw std::invalid_argument(std::string(name) + ": expected three dimensions, got " +
                                    std::to_string(shape.count));
    Volume found{address_of(tensor), {}, {}, dtype_of(tensor)};
    std::copy_n(shape.at, 3, found.shape);
    std::copy_n(strides.at, 3, found.stride);
    return found;
}

LevelList Fields::levels(const char* name, const char* gradients, int sides, const std::vector<double>& strides) {
    const std::vector<py::object> tensors = objects(name),
                                  grads = gradients ? objects(gradients) : std::vector<py::object>{};
    const std::size_t count = tensors.size();
    const auto refuse = [](const char* what, const std::string& expected, std::size_t got) {
        throw std::invalid_argument(std::string(what) + ": expected " + expected + ", got " + std::to_string(got));
    };
    if (count < 1 || count > std::size_t(max_levels)) refuse(name, "1 to 8", count);
    if (!strides.empty() && strides.size() != count) refuse("strides", "one per level", strides.size());
    if (!grads.empty() && grads.size() != count) refuse(gradients, "one per level", grads.size());
    LevelList list;
    list.table.count = int(count);
    list.dtype = dtype_of(tensors[0]);
    list.gradients = !grads.empty();
    for (std::size_t l = 0; l < count; ++l) {
        const Numbers shape = shape_of(tensors[l]);
        const bool map = shape.count == 4;
        if (l == 0) {
            list.batch = map ? shape.at[0] : 1;
            list.channels = int(map ? shape.at[1] / sides : shape.at[shape.count - 1]);
        } else if (!map || shape.at[0] != list.batch || shape.at[1] / sides != list.channels ||
                   dtype_of(tensors[l]) != list.dtype) {
            throw std::invalid_argument(std::string(name) + ": expected batch, channels and dtype of the first level");
        }
        Level& level = list.table.level[l];
        level.height = map ? shape.at[2] : 1;
        level.width = map ? shape.at[3] : shape.at[0];
        level.logits = address_of(tensors[l]);
        level.strides = read_strides(tensors[l], sides, list.channels);
        if (list.gradients) {
            level.grad_logits = address_of(grads[l]);
            level.grad_strides = read_strides(grads[l], sides, list.channels);
        }
        level.first_point = list.points;
        level.stride = strides.empty() ? 0.0 : strides[l];
        list.points += level.height * level.width;
    }
    return list;
}

ValidCells::ValidCells(Fields& fields, std::vector<std::int64_t> of_levels, std::int64_t batch)
    : shapes(std::move(of_levels)), given(fields.integers("valid")) {
    if (!given.empty() && given.size() != shapes.size() * batch)
        throw std::invalid_argument("valid: expected " + std::to_string(shapes.size()) + " numbers an image, got " +
                                    std::to_string(given.size()));
}

void ValidCells::write(std::int64_t image, std::int32_t* rows, std::int32_t* columns) const {
    const std::int64_t* const cells = given.empty() ? nullptr : given.data() + shapes.size() * image;
    // Never more than there are.
    const auto cut = [&](std::size_t i) {
        return std::int32_t(cells ? std::clamp(cells[i], std::int64_t(0), shapes[i]) : shapes[i]);
    };
    for (std::size_t l = 0; 2 * l < shapes.size(); ++l) {
        rows[l] = cut(2 * l);
        columns[l] = cut(2 * l + 1);
    }
}

}  // namespace gflv2
