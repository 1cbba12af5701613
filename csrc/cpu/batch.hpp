// Tiles of one task gathered into batches: where an operation has several steps over the same points, each step runs
// over a batch, whose intermediate values stay in the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/tiles.hpp"

GFLV2_BEGIN

// `used` ≤ lanes points at equal steps, from index `point` of the level.
struct PointTile {
    std::int64_t logits, gradient;  // element offsets of the first point's side 0, bin 0
    std::int64_t step, grad_step;
    std::int64_t point;
    int used;
};

// Tiles of a batch: the points of a task where they lie at equal steps; short runs need several batches.
template <class S> constexpr int tiles_per_batch = int(points_per_task) / lanes<S>;

// Calls run(tiles, count) for batches that make up the task.
template <class S, class Run>
GFLV2_HD void each_batch(const Level& level, const Task& task, bool gradient, const Run& run) {
    constexpr int n = lanes<S>;
    PointTile tiles[tiles_per_batch<S>];
    int filled = 0;
    each_run(level, task, gradient,
             [&](std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t step,
                 std::int64_t grad_offset, std::int64_t grad_step) {
        for (std::int64_t i = 0; i < count; i += n) {
            const int used = int(count - i < n ? count - i : n);
            tiles[filled++] = {offset + i * step, grad_offset + i * grad_step, step, grad_step, first + i, used};
            if (filled == tiles_per_batch<S>) {
                run(tiles, filled);
                filled = 0;
            }
        }
    });
    if (filled > 0) run(tiles, filled);
}

// The first `used` lanes from and to memory; the others are read as 0 and not written.
template <class S> GFLV2_HD vector_t<S> load_used(const S* from, int used) {
    if (used == lanes<S>) return load(from);
    vector_t<S> value{};
    for (int i = 0; i < used; ++i) value[i] = from[i];
    return value;
}
template <class S> GFLV2_HD void store_used(S* to, vector_t<S> value, int used) {
    if (used == lanes<S>) return store(to, value);
    for (int i = 0; i < used; ++i) to[i] = value[i];
}

// Memory of the calling thread for `count` vectors. It is kept between calls (asking the system for it anew costs a
// page fault every 4 KB), and its content is undefined.
template <class S> vector_t<S>* scratch(std::size_t count) {
    thread_local std::vector<S> memory;
    const std::size_t needed = (count + 1) * lanes<S>;
    if (memory.size() < needed) memory = std::vector<S>(needed);
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory.data());
    return reinterpret_cast<vector_t<S>*>((address + sizeof(vector_t<S>) - 1) / sizeof(vector_t<S>) *
                                          sizeof(vector_t<S>));
}

GFLV2_END
