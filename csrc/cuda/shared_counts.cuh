// Counts in shared memory. CUDA's own atomicAdd would have the lanes of a warp add up theirs first, and take a branch around
// each of many counts: more instructions than it saves where each lane has a place of its own.
#pragma once

#include <cstdint>

#include "gflv2/launch.hpp"

namespace gflv2::cuda {

// Where a word lies in shared memory, in bytes: an offset costs one instruction, or none.
#if defined(GFLV2_SIMT)
using SharedAddress = std::uintptr_t;
inline SharedAddress shared_address(std::uint32_t* word) { return reinterpret_cast<SharedAddress>(word); }
#else
using SharedAddress = std::uint32_t;
__device__ inline SharedAddress shared_address(std::uint32_t* word) {
    return SharedAddress(__cvta_generic_to_shared(word));
}
#endif

// Adds 1.
__device__ inline void count_shared(SharedAddress word) {
#if defined(GFLV2_SIMT)
    atomic_add(reinterpret_cast<std::uint32_t*>(word), std::uint32_t(1));
#else
    asm volatile("red.shared.add.u32 [%0], 1;" : : "r"(word) : "memory");
#endif
}

}  // namespace gflv2::cuda
