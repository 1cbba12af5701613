// Tensors, lists of levels, images and single fields, read from what Python hands over.

#include <algorithm>

#include "bindings/bindings.hpp"

namespace gflv2 {
namespace {

// Method and attribute names as Python objects, made once and never freed.
py::handle name_of(const char* text) { return PyUnicode_InternFromString(text); }

py::object call_method(py::handle object, py::handle name) {
    PyObject* const result = PyObject_CallMethodNoArgs(object.ptr(), name.ptr());
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

std::int64_t integer(py::handle number) {
    const std::int64_t value = PyLong_AsLongLong(number.ptr());
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

Numbers shape_of(py::handle tensor) {
    static const py::handle name = name_of("shape");
    return Numbers(py::getattr(tensor, name));
}

Numbers strides_of(py::handle tensor) {
    static const py::handle name = name_of("stride");
    return Numbers(call_method(tensor, name));
}

// Of the view (B, sides, channels, H, W).
Strides read_strides(py::handle tensor, int sides, int channels) {
    const Numbers n = strides_of(tensor);
    if (n.count == 2) return {0, 0, n.at[1], 0, n.at[0]};
    if (n.count == 3) return {0, n.at[1], n.at[2], 0, n.at[0]};
    return {n.at[0], sides > 1 ? channels * n.at[1] : 0, n.at[1], n.at[2], n.at[3]};
}

}  // namespace

void* address_of(py::handle tensor) {
    static const py::handle name = name_of("data_ptr");
    if (tensor.is_none()) return nullptr;
    return reinterpret_cast<void*>(integer(call_method(tensor, name)));
}

Numbers::Numbers(py::handle sequence) {
    const Py_ssize_t size = PyTuple_Check(sequence.ptr()) ? PyTuple_GET_SIZE(sequence.ptr()) : -1;
    if (size < 0 || size > 4) throw std::invalid_argument("tensor: expected at most four dimensions");
    count = int(size);
    for (int i = 0; i < count; ++i) at[i] = integer(PyTuple_GET_ITEM(sequence.ptr(), i));
}

Call::Call(const py::tuple& place) {
    if (place.size() != 3) throw std::invalid_argument("place: expected (device, where, allocate)");
    device = py::cast<int>(place[0]);
    where = integer(place[1]);
    allocator = place[2];
}

void* Call::allocate(std::size_t bytes) {
    if (bytes == 0) return nullptr;
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

void Fields::finish() const {
    if (taken == given.size()) return;
    throw std::invalid_argument(std::string(operation) + ": expected " + std::to_string(taken) + " fields, got " + std::to_string(given.size()) +
                                ": " + py::cast<std::string>(py::str(py::list(given.attr("keys")()))));
}

int Fields::number(const char* name, int least, int most) {
    const std::int64_t value = integer(get(name));
    if (value < least || value > most) {
        const std::string bound = most == INT32_MAX ? "at least " + std::to_string(least) : std::to_string(least) + " to " + std::to_string(most);
        throw std::invalid_argument(std::string(name) + ": expected " + bound + ", got " + std::to_string(value));
    }
    return int(value);
}

std::vector<std::int64_t> Fields::integers(const char* name) {
    std::vector<std::int64_t> found;
    for (const py::handle item : get(name)) found.push_back(integer(item));
    return found;
}

std::vector<double> Fields::numbers(const char* name) {
    std::vector<double> found;
    for (const py::handle item : get(name)) found.push_back(py::cast<double>(item));
    return found;
}

void Fields::read(const char* name, Reduction& field) {
    const py::kwargs inner = py::reinterpret_borrow<py::kwargs>(get(name));
    Fields fields(name, inner);
    Reduction& a = field;
    GFLV2_READ(total);
    GFLV2_READ(weight);
    GFLV2_READ(divisor);
    GFLV2_READ(factor);
    GFLV2_READ(out);
    GFLV2_READ(grad_out);
    fields.finish();
}

std::vector<ImageMemory> Fields::images(const char* name, std::int64_t batch, std::size_t element_size) {
    const py::handle value = get(name);
    std::vector<ImageMemory> found(batch, ImageMemory{nullptr, 0});
    if (value.is_none()) return found;
    if (!PyList_Check(value.ptr())) {
        char* const first = static_cast<char*>(address_of(value));
        const std::int64_t step = strides_of(value).at[0], count = shape_of(value).at[1];
        for (std::int64_t i = 0; i < batch; ++i) found[i] = {first + i * step * std::int64_t(element_size), count};
        return found;
    }
    if (std::int64_t(py::len(value)) != batch)
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(batch) + " images, got " + std::to_string(py::len(value)));
    for (std::int64_t i = 0; i < batch; ++i) {
        const py::handle image = PyList_GET_ITEM(value.ptr(), i);
        found[i] = {static_cast<char*>(address_of(image)), shape_of(image).at[0]};
    }
    return found;
}

ValidCells::ValidCells(Fields& fields, const std::vector<std::int64_t>& shapes, std::int64_t batch)
    : shapes(shapes), given(fields.integers("valid")) {
    if (!given.empty() && given.size() != shapes.size() * batch)
        throw std::invalid_argument("valid: expected " + std::to_string(shapes.size()) + " numbers an image, got " + std::to_string(given.size()));
}

void ValidCells::write(std::int64_t image, std::int32_t* rows, std::int32_t* columns) const {
    const std::int64_t* const cells = given.empty() ? nullptr : given.data() + shapes.size() * image;
    // Never more than there are.
    const auto cut = [&](std::size_t i) { return std::int32_t(cells ? std::clamp(cells[i], std::int64_t(0), shapes[i]) : shapes[i]); };
    for (std::size_t l = 0; 2 * l < shapes.size(); ++l) {
        rows[l] = cut(2 * l);
        columns[l] = cut(2 * l + 1);
    }
}

Rows Fields::rows(const char* name) {
    const py::handle tensor = get(name);
    if (tensor.is_none()) return {};
    const Numbers shape = shape_of(tensor), strides = strides_of(tensor);
    if (shape.count != 2) throw std::invalid_argument(std::string(name) + ": expected two dimensions, got " + std::to_string(shape.count));
    return {address_of(tensor), shape.at[0], strides.at[0], strides.at[1], int(shape.at[1])};
}

LevelList Fields::levels(const char* name, const char* gradients, int sides, const std::vector<double>& strides) {
    const auto tensors = py::reinterpret_borrow<py::sequence>(get(name));
    const py::sequence grads = gradients ? py::reinterpret_borrow<py::sequence>(get(gradients)) : py::sequence(py::tuple());
    const std::size_t count = tensors.size();
    if (count < 1 || count > std::size_t(max_levels)) throw std::invalid_argument("levels: expected 1 to 8, got " + std::to_string(count));
    if (!strides.empty() && strides.size() != count)
        throw std::invalid_argument("strides: expected one per level, got " + std::to_string(strides.size()));
    if (grads.size() != 0 && grads.size() != count)
        throw std::invalid_argument(std::string(gradients) + ": expected one per level, got " + std::to_string(grads.size()));
    LevelList list;
    list.table.count = int(count);
    for (std::size_t l = 0; l < count; ++l) {
        const py::object tensor = tensors[l];
        const Numbers shape = shape_of(tensor);
        Level& level = list.table.level[l];
        if (l == 0) {
            list.batch = shape.count == 4 ? shape.at[0] : 1;
            list.channels = int(shape.count == 4 ? shape.at[1] / sides : shape.at[shape.count - 1]);
        }
        level.height = shape.count == 4 ? shape.at[2] : 1;
        level.width = shape.count == 4 ? shape.at[3] : shape.at[0];
        level.logits = address_of(tensor);
        level.strides = read_strides(tensor, sides, list.channels);
        if (grads.size()) {
            const py::object gradient = grads[l];
            level.grad_logits = address_of(gradient);
            level.grad_strides = read_strides(gradient, sides, list.channels);
        }
        level.first_point = list.points;
        level.stride = strides.empty() ? 0.0 : strides[l];
        list.points += level.height * level.width;
    }
    return list;
}

}  // namespace gflv2
