// The way of csrc/bindings to the emulated kernels. On request it writes each call to a file, for simt_check.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <vector>

#include "gflv2/api/atss.hpp"
#include "gflv2/api/dynamic_soft_label.hpp"
#include "gflv2/api/gfl_targets.hpp"
#include "gflv2/api/task_aligned.hpp"
#include "gflv2/types.hpp"

namespace gflv2::simt {

struct Span {
    const void* begin;
    std::size_t size;
};

// What an operation reads on the host: its arguments, and what they point to there.
template <class Arguments> std::vector<Span> host_memory(const Arguments& a) { return {{&a, sizeof a}}; }
inline std::vector<Span> host_memory(const AtssArguments& a) {
    return {{&a, sizeof a}, {a.images, std::size_t(a.batch) * sizeof(AtssImage)}};
}
inline std::vector<Span> host_memory(const DynamicSoftLabelArguments& a) {
    return {{&a, sizeof a}, {a.images, std::size_t(a.batch) * sizeof(SoftLabelImage)}};
}
inline std::vector<Span> host_memory(const GflTargetsArguments& a) {
    return {{&a, sizeof a}, {a.images, std::size_t(a.batch) * sizeof(GflImage)}};
}

inline std::vector<Span> host_memory(const TaskAlignedArguments& a) {
    return {{&a, sizeof a}, {a.images, std::size_t(a.batch) * sizeof(TaskAlignedImage)}};
}

bool recording();
void record_before(const char* operation, const std::vector<Span>& blocks);
void record_after();

template <class Arguments>
void run(const char* operation, const Arguments& arguments, void (*on_cuda)(const Arguments&, Place), Place place) {
    const pybind11::gil_scoped_release release;
    const bool recorded = recording();
    if (recorded) record_before(operation, host_memory(arguments));
    on_cuda(arguments, place);
    if (recorded) record_after();
}

// record(folder): write every call from now on; "" ends it. note(address, bytes): memory that the next call may use.
void bind_recorder(pybind11::module_& m);

}  // namespace gflv2::simt
