// Threads of the CPU code: OpenMP, which shares torch's worker threads. (Both libraries ask the loader for
// libgomp.so.1, and the loader gives both the one copy that torch brought.)
#pragma once

#include <cstdint>

#include "gflv2/macros.hpp"

namespace gflv2::cpu {
// `wanted`, or 1 in a process forked from one whose threads had run: OpenMP's do not survive a fork.
int usable_threads(int wanted);
}  // namespace gflv2::cpu

GFLV2_BEGIN

// task(0), …, task(count − 1), each once, on up to `threads` threads. Which thread runs which task is left open, so
// a task must not depend on it.
template <class Task> void parallel_for(std::int64_t count, int threads, const Task& task) {
#if defined(_OPENMP)
    threads = count < threads ? int(count) : threads;
    if (threads > 1 && (threads = cpu::usable_threads(threads)) > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (std::int64_t i = 0; i < count; ++i) task(i);
        return;
    }
#endif
    (void)threads;
    for (std::int64_t i = 0; i < count; ++i) task(i);
}

// How many threads a call of some length is worth. Below 150 µs one does it all: the others sleep between calls, and to
// wake them takes longer than they save.
inline int threads_for(std::int64_t nanoseconds, int threads) { return nanoseconds < 150000 ? 1 : threads; }

GFLV2_END
