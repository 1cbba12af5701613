// Python's view of the library. gflv2/ops/native is its only caller.

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

using namespace gflv2;

PYBIND11_MODULE(_native, m) {
    m.doc() = "The native kernels of gflv2, called by gflv2.ops.native.";
#define GFLV2_CALL(name) bind_##name(m);
    GFLV2_OPERATIONS(GFLV2_CALL)
    m.def("set_dtypes", &set_dtypes);
    m.def("instruction_set", [] { return std::string(instruction_set()); });
    m.def("instruction_sets", &instruction_sets);
    m.def("set_instruction_set", [](const std::string& name) {
        if (!set_instruction_set(name.c_str()))
            throw std::invalid_argument(
                "instruction set: expected one that was built and that this processor has, got " + name);
    });
#if defined(GFLV2_SIMT)
    simt::bind_recorder(m);
#endif
#if defined(GFLV2_HAS_CUDA)
    m.def("cuda_problem", &cuda::problem);
    m.attr("cuda_architectures") = GFLV2_CUDA_ARCHITECTURES;
#endif
}
