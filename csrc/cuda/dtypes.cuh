// The dtypes that the CUDA kernels take.
#pragma once

#include <stdexcept>
#include <string>

#include "gflv2/launch.hpp"
#include "gflv2/storage.hpp"
#include "gflv2/types.hpp"

namespace gflv2::cuda {

// Calls run(zero) on the device of `place`; the type of `zero` is that of the elements. `operation` is for the message.
template <class Run> void run_as(const char* operation, Dtype dtype, Place place, const Run& run) {
    const DeviceGuard guard(place.device);
    switch (dtype) {
        case Dtype::float32: return run(float{});
        case Dtype::float16: return run(half{});
        case Dtype::bfloat16: return run(bfloat16{});
        case Dtype::float64: break;
    }
    throw std::invalid_argument(std::string(operation) + ": the CUDA kernels take float32, float16 and bfloat16");
}

}  // namespace gflv2::cuda
