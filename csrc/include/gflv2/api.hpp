// The C++ interface: what each operation receives, one header an operation. Pointers are to the memory of one device;
// the library allocates nothing there.
#pragma once

#include <string>
#include <vector>

#include "gflv2/api/atss.hpp"
#include "gflv2/api/decode.hpp"
#include "gflv2/api/dfl.hpp"
#include "gflv2/api/dgqp.hpp"
#include "gflv2/api/distribution_kl.hpp"
#include "gflv2/api/dynamic_soft_label.hpp"
#include "gflv2/api/focal.hpp"
#include "gflv2/api/gfl_loss.hpp"
#include "gflv2/api/gfl_targets.hpp"
#include "gflv2/api/giou.hpp"
#include "gflv2/api/integral.hpp"
#include "gflv2/api/qfl.hpp"
#include "gflv2/api/task_aligned.hpp"

namespace gflv2 {

// The instruction set in use, those built that this processor has (best first), and the choice of another one of them.
const char* instruction_set();
std::vector<std::string> instruction_sets();
bool set_instruction_set(const char* name);

namespace cuda {
// Why no kernel can run on this device (driver, architecture); empty where they can. Never throws.
std::string problem(int device);
}  // namespace cuda

}  // namespace gflv2
