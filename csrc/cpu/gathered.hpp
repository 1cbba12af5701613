// Single points of a level, one in each lane, wherever they lie: few points are positive, and the training head computes those
// alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd.hpp"
#include "gflv2/storage.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

// A vector of points anywhere in an image's level. Lanes from `used` on repeat the first point.
template <class S> struct Gathered {
    using V = vector_t<S>;
    static constexpr int n = lanes<S>;
    int used;
    std::int64_t point[n], row[n], column[n];  // index in the level, and its cell

    Gathered(const Level& level, const std::int32_t* points, int count) : used(count) {
        for (int lane = 0; lane < n; ++lane) {
            point[lane] = points[lane < count ? lane : 0];
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

// A row of logits for each lane.
template <class S> struct alignas(64) GatheredRow {
    static constexpr int n = lanes<S>;
    S at[max_bins][n];

    vector_t<S> operator[](int bin) const { return load(at[bin]); }

    template <class T> void read(const T* from, const std::int64_t* offsets, std::int64_t bin_step, int bins) {
        for (int b = 0; b < bins; ++b)
            for (int lane = 0; lane < n; ++lane) at[b][lane] = widen(from[offsets[lane] + b * bin_step]);
    }
};

// A box a lane, each from a place of its own.
template <class S> void gather_boxes(const S* const* at, vector_t<S>* box) {
    for (int lane = 0; lane < lanes<S>; ++lane)
        for (int side = 0; side < 4; ++side) box[side][lane] = at[lane][side];
}

template <class S> S scale_of(const void* scales, int level) { return scales ? static_cast<const S*>(scales)[level] : S(1); }

// Calls run(points) for the gathered points of a task.
template <class S, class Run> void each_gathered(const Level& level, const std::vector<std::int32_t>& points, const Run& run) {
    for (std::size_t i = 0; i < points.size(); i += lanes<S>)
        run(Gathered<S>(level, points.data() + i, int(std::min<std::size_t>(lanes<S>, points.size() - i))));
}

GFLV2_END
