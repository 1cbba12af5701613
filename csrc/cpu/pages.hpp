// Huge pages for gradients. A gradient of a score map is megabytes of fresh memory, and the system maps it page by page
// as it is written: 3500 page faults for 14 MB, which in a virtual machine took 8 ms where the writing took 1.4 (with
// pages of 2 MB: 2 ms). The advice is taken where /sys/kernel/mm/transparent_hugepage/enabled says madvise or always;
// it changes no content.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "gflv2/macros.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

constexpr std::uintptr_t huge_page = std::uintptr_t(2) << 20;

// Memory that is about to be written. Only huge pages that lie wholly in it are requested: the rest is shared with
// other memory.
inline void expect_writes(void* from, std::int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(from), end = begin + bytes;
    const std::uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page, last = end / huge_page * huge_page;
    // A refusal costs nothing but the time.
    if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)from, (void)bytes;
#endif
}

// The gradients of all levels, of `sides`·`bins` channels.
inline void expect_gradients(const LevelTable& levels, Dtype dtype, std::int64_t batch, int sides, int bins) {
    const std::int64_t size = dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
    for (int l = 0; l < levels.count; ++l) {
        const Level& level = levels.level[l];
        if (level.height * level.width == 0) continue;
        const Strides& s = level.grad_strides;
        const std::int64_t last = (batch - 1) * s.image + (sides - 1) * s.side + (bins - 1) * s.bin +
                                  (level.height - 1) * s.y + (level.width - 1) * s.x;
        expect_writes(level.grad_logits, (last + 1) * size);
    }
}

GFLV2_END
