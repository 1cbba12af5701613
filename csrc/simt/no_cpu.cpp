// What csrc/cpu/dispatch.cpp answers: the emulation has no CPU kernels.

#include "gflv2/api.hpp"

namespace gflv2 {

const char* instruction_set() { return "none"; }
std::vector<std::string> instruction_sets() { return {}; }
bool set_instruction_set(const char*) { return false; }

}  // namespace gflv2
