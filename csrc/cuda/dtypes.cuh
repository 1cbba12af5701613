// The dtypes that the CUDA kernels take.
#pragma once

#include <stdexcept>
#include <string>

#include "gflv2/instances.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {

// Calls run(zero) on the device of `place`; the type of `zero` is that of the elements. `operation` is for the message.
template <class Run> void run_as(const char* operation, Dtype dtype, Place place, const Run& run) {
    const DeviceGuard guard(place.device);
    with_type(dtype, [&](auto zero) {
        if constexpr (sizeof zero == sizeof(double))
            throw std::invalid_argument(std::string(operation) +
                                        ": the CUDA kernels take float32, float16 and bfloat16");
        else run(zero);
    });
}

}  // namespace gflv2::cuda
