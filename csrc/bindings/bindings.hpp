// What the bindings of the operations share; each has a file of its own beside this one.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

namespace gflv2 {

namespace py = pybind11;

template <class T> T* pointer(std::int64_t address) { return reinterpret_cast<T*>(address); }

void bind_atss(py::module_& m);

}  // namespace gflv2
