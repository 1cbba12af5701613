// In place of csrc/cpu, which the emulation has no use for.

#include <stdexcept>

#include "cpu/kernels.hpp"

namespace gflv2 {

const char* instruction_set() { return "none"; }
std::vector<std::string> instruction_sets() { return {}; }
bool set_instruction_set(const char*) { return false; }

namespace cpu {
#define GFLV2_REFUSE(name, Arguments) \
    void name(const Arguments&, int) { throw std::logic_error("the emulation of the CUDA kernels has no CPU kernels"); }
GFLV2_CPU_KERNELS(GFLV2_REFUSE)
}  // namespace cpu

}  // namespace gflv2
