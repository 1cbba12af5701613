// What csrc/cuda/device.cu answers, for the emulated device.

#include <string>

#include "gflv2/api.hpp"

namespace gflv2::cuda {

std::string problem(int device) { return device == 0 ? "" : "the emulation has one device, number 0"; }

}  // namespace gflv2::cuda
