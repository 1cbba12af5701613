// How the CPU kernels walk over levels: tasks, runs of points, and tiles (one SIMD register of points, all bins of a
// side).
//
// Every tile has the same form in registers, lane i = point i, whatever the layout in memory:
//   NCHW           points adjacent: one load per bin
//   channels_last  bins adjacent (rows (M, 4, R) too): loads along the bins, and a transposition in registers
//   anything else  element by element
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/simd.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

// Points per task: 140 KB of float32 logits at 17 bins, enough to hide the hand-out, small enough to balance. With 256
// the prefetches beyond the end of a task cost a fifth more time out of the cache.
constexpr std::int64_t points_per_task = 512;

// NCHW reads one stream of memory per bin, and writes one: more than the hardware's prefetchers follow. Asked for by
// hand, the lines come in time (measured on a Zen 5 core, 17 bins, float32, beyond the cache: backward 0.88 → 0.49 ms
// for 16,800 points with AVX-512, 2.4 → 0.73 ms with AVX2). The reading ones help forward by a third.
constexpr int prefetch_read_bytes = 512, prefetch_write_bytes = 256;

// The points [first, last) of one level of one image.
struct Task {
    int level;
    std::int64_t image, first, last;
};

// The work of a call, level-major. It depends on the shapes alone, so sums formed task by task are the same every time.
inline std::vector<Task> list_tasks(const LevelTable& levels, std::int64_t batch) {
    std::vector<Task> tasks;
    for (int l = 0; l < levels.count; ++l) {
        const std::int64_t points = levels.level[l].height * levels.level[l].width;
        for (std::int64_t image = 0; image < batch; ++image)
            for (std::int64_t first = 0; first < points; first += points_per_task)
                tasks.push_back({l, image, first, first + points_per_task < points ? first + points_per_task : points});
    }
    return tasks;
}

// Of the logits of a level; scales (L,), or null: 1.
template <class S> S scale_of(const void* scales, int level) {
    return scales ? static_cast<const S*>(scales)[level] : S(1);
}

// Do the points of a level lie at equal steps in memory, in row-major order? Then the step, else 0.
GFLV2_HD std::int64_t point_step(const Level& level, const Strides& strides) {
    if (level.width == 1) return strides.y;
    return level.height == 1 || strides.y == level.width * strides.x ? strides.x : 0;
}

// run(first, count, logits offset, logits step, gradient offset, gradient step) for runs of points at equal steps that
// make up a task; offsets are of the image's first side and bin.
template <class Run> GFLV2_HD void each_run(const Level& level, const Task& task, bool gradient, const Run& run) {
    const Strides& s = level.strides;
    const Strides& g = level.grad_strides;
    const std::int64_t step = point_step(level, s), grad_step = gradient ? point_step(level, g) : 0;
    const std::int64_t base = task.image * s.image, grad_base = task.image * g.image;
    if (step != 0 && (grad_step != 0 || !gradient)) {
        run(task.first, task.last - task.first, base + task.first * step, step, grad_base + task.first * grad_step,
            grad_step);
        return;
    }
    for (std::int64_t first = task.first; first < task.last;) {
        const std::int64_t y = first / level.width, x = first % level.width;
        const std::int64_t count = level.width - x < task.last - first ? level.width - x : task.last - first;
        run(first, count, base + y * s.y + x * s.x, s.x, grad_base + y * g.y + x * g.x, g.x);
        first += count;
    }
}

// A tile in NCHW memory, read where it lies: bin b is one load, and cheaper to load again than to keep in a register.
template <class T> struct PlaneRow {
    const T* at;
    std::int64_t bin_step;

    GFLV2_HD vector_t<compute_t<T>> operator[](int bin) const { return load(at + bin * bin_step); }
};

// Ask for the lines that the tiles after this one need.
template <int BINS, class T> GFLV2_HD void prefetch_planes(const T* at, std::int64_t bin_step, int bins) {
    each<BINS>(bins, [&](int b) { __builtin_prefetch(at + b * bin_step + prefetch_read_bytes / sizeof(T)); });
}
template <class T> GFLV2_HD void prefetch_write(T* at) { __builtin_prefetch(at + prefetch_write_bytes / sizeof(T), 1); }

// Lane i is at[i·step]. (Put together from all elements at once; written one by one, they would have to reach memory
// before the register can be read back.)
template <class T, std::size_t... I>
GFLV2_HD vector_t<compute_t<T>> gather(const T* at, std::int64_t step, std::index_sequence<I...>) {
    return vector_t<compute_t<T>>{widen(at[std::int64_t(I) * step])...};
}

// Tile of `count` ≤ lanes points, of any layout: tile[b] lane i = at[i·point_step + b·bin_step]; lanes from `count` on
// are 0.
template <class T>
GFLV2_HD void load_tile(vector_t<compute_t<T>>* tile, const T* at, std::int64_t point_step, std::int64_t bin_step,
                        int bins, int count) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    int b = 0;
    if (count == n && point_step == 1) {
        for (; b < bins; ++b) tile[b] = load(at + b * bin_step);
    } else if (count == n && bin_step == 1) {
        for (; b + n <= bins; b += n) {
            each<n>(n, [&](int i) { tile[b + i] = load(at + i * point_step + b); });
            transpose<S>(tile + b);
        }
    }
    if (count == n)
        for (; b < bins; ++b) tile[b] = gather(at + b * bin_step, point_step, std::make_index_sequence<n>{});
    for (; b < bins; ++b) {
        V value = V{};
        for (int i = 0; i < count; ++i) value[i] = widen(at[i * point_step + b * bin_step]);
        tile[b] = value;
    }
}

// The inverse of load_tile; rounds to T. The tile is used as scratch.
template <class T>
GFLV2_HD void store_tile(T* at, vector_t<compute_t<T>>* tile, std::int64_t point_step, std::int64_t bin_step, int bins,
                         int count) {
    using S = compute_t<T>;
    constexpr int n = lanes<S>;
    int b = 0;
    if (count == n && point_step == 1) {
        for (; b < bins; ++b) store(at + b * bin_step, tile[b]);
    } else if (count == n && bin_step == 1) {
        for (; b + n <= bins; b += n) {
            transpose<S>(tile + b);
            each<n>(n, [&](int i) { store(at + i * point_step + b, tile[b + i]); });
        }
    }
    for (; b < bins; ++b)
        for (int i = 0; i < count; ++i) at[i * point_step + b * bin_step] = narrow<T>(tile[b][i]);
}

GFLV2_END
