// Operations whose .cu file does not exist yet; its own definition replaces the weak one.

#include <stdexcept>

#include "gflv2/api.hpp"

#define GFLV2_ABSENT(name, Arguments) \
    __attribute__((weak)) void name(const Arguments&, Place) { throw std::runtime_error(#name " has no CUDA kernel yet"); }

namespace gflv2::cuda {

GFLV2_ABSENT(qfl_forward, QflArguments)
GFLV2_ABSENT(qfl_backward, QflArguments)
GFLV2_ABSENT(dfl_forward, DflArguments)
GFLV2_ABSENT(dfl_backward, DflArguments)
GFLV2_ABSENT(giou_forward, GiouArguments)
GFLV2_ABSENT(giou_backward, GiouArguments)
__attribute__((weak)) std::size_t qfl_workspace(const LevelTable&, std::int64_t) { return 0; }
__attribute__((weak)) std::size_t dfl_workspace(std::int64_t) { return 0; }
__attribute__((weak)) std::size_t giou_workspace(std::int64_t) { return 0; }

}  // namespace gflv2::cuda
