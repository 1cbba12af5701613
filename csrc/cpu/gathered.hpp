// Single points of a level, one in each lane, wherever they lie: few points are positive, and the training head
// computes those alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd.hpp"
#include "gflv2/storage.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

// A vector of points anywhere in an image's level, the point of lane i being point_of(i). Lanes from `used` on repeat
// the first.
template <class S> struct Gathered {
    using V = vector_t<S>;
    static constexpr int n = lanes<S>;
    int used;
    std::int64_t point[n], row[n], column[n];  // index in the level, and its cell

    template <class PointOf> Gathered(const Level& level, int count, const PointOf& point_of) : used(count) {
        for (int lane = 0; lane < n; ++lane) {
            point[lane] = point_of(lane < count ? lane : 0);
            row[lane] = point[lane] / level.width;
            column[lane] = point[lane] - row[lane] * level.width;
        }
    }

    // Element offsets in the memory of an image.
    void offsets(const Strides& strides, std::int64_t* to) const {
        for (int lane = 0; lane < n; ++lane) to[lane] = row[lane] * strides.y + column[lane] * strides.x;
    }

    void cells(S offset, V* cell) const {
        for (int lane = 0; lane < n; ++lane) {
            cell[0][lane] = S(column[lane]) + offset;
            cell[1][lane] = S(row[lane]) + offset;
        }
    }
};

// Lane i is at[offsets[i]]. (The gather instructions of AVX2 and AVX-512 take twice as long on a Zen 5 core.)
template <class T> GFLV2_HD vector_t<compute_t<T>> gather(const T* at, const std::int64_t* offsets) {
    using S = compute_t<T>;
    S values[lanes<S>];
    each<lanes<S>>(lanes<S>, [&](int i) { values[i] = widen(at[offsets[i]]); });
    return load(values);
}

// A row of logits for each lane.
template <class T>
GFLV2_HD void gather_row(const T* at, const std::int64_t* offsets, std::int64_t bin_step, int bins,
                         vector_t<compute_t<T>>* row) {
    for (int b = 0; b < bins; ++b) row[b] = gather(at + b * bin_step, offsets);
}

// A box a lane, each from a place of its own.
template <class S> void gather_boxes(const S* const* at, vector_t<S>* box) {
    for (int lane = 0; lane < lanes<S>; ++lane)
        for (int side = 0; side < 4; ++side) box[side][lane] = at[lane][side];
}

// Calls run(points) for the gathered points of a task.
template <class S, class Run>
void each_gathered(const Level& level, const std::vector<std::int32_t>& points, const Run& run) {
    for (std::size_t i = 0; i < points.size(); i += lanes<S>)
        run(Gathered<S>(level, int(std::min<std::size_t>(lanes<S>, points.size() - i)),
                        [&](int lane) { return points[i + lane]; }));
}

GFLV2_END
