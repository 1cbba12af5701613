// Rows of box logits on CUDA: how a block of one warp per side reads and writes those of its 32 points, and how one of
// one thread per point shares out the rows of the few that matter.
#pragma once

#include <cstdint>

#include "gflv2/blocks.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/ptx.hpp"
#include "gflv2/softmax.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {

constexpr unsigned warp = 32;
constexpr unsigned threads = 4 * warp;  // four sides

template <class T> struct alignas(4 * sizeof(T)) Four {
    T value[4];
};

// Four adjacent, aligned elements in one store.
template <class T> __device__ inline void store_four(T* at, const float* from) {
    if constexpr (sizeof(T) == 2) {
        const std::uint64_t high = ptx::narrow_pair<T>(from[2], from[3]);
        *reinterpret_cast<std::uint64_t*>(at) = high << 32 | ptx::narrow_pair<T>(from[0], from[1]);
    } else {
        Four<T> four;
        for (int i = 0; i < 4; ++i) four.value[i] = narrow<T>(from[i]);
        *reinterpret_cast<Four<T>*>(at) = four;
    }
}

// Of the logits of a level; scales (L,), or null: 1.
__device__ inline float scale_of(const void* scales, int level) {
    return scales ? static_cast<const float*>(scales)[level] : 1.0f;
}

// A row in memory: logits bin_step apart.
template <class T> struct MemoryRow {
    const T* at;
    std::int64_t bin_step;
    __device__ float operator[](int bin) const { return widen(at[bin * bin_step]); }
};

template <int BINS> struct ExponentialsFor {
    using type = KeptExponentials<float, BINS>;
};
template <> struct ExponentialsFor<0> {
    using type = RecomputedExponentials<float>;
};

// Do neighbouring bins lie side by side?
inline bool bins_adjacent(const LevelTable& levels, bool gradient) {
    for (int l = 0; l < levels.count; ++l) {
        const Level& level = levels.level[l];
        if (level.strides.bin != 1 || (gradient && level.grad_strides.bin != 1)) return false;
    }
    return true;
}

// Words between rows in shared memory: odd, so that the lanes of a warp fall on different banks.
GFLV2_HD int pitch_of(int bins) { return bins | 1; }

// How rows lie, whose bins are adjacent: from point `first` on.
struct RowSpan {
    bool flat;           // all points are equally far apart
    bool end_to_end;     // nothing lies between the rows, and four elements may be read at a time
    std::int64_t start;  // of the first row, or, where they are not flat, of the image

    template <class T>
    __device__ RowSpan(const Level& level, const Strides& s, const T* data, std::uint32_t image, std::uint32_t first,
                       int bins)
        : flat(level.height == 1 || s.y == level.width * s.x), start(image * s.image + (flat ? first * s.x : 0)) {
        end_to_end = flat && s.side == bins && s.x == 4 * bins && bins % 2 == 1 &&
                     reinterpret_cast<std::uintptr_t>(data + start) % sizeof(Four<T>) == 0;
    }
};

// Elements from `from` to `count` of rows in the order of memory, one by one: f(element offset, place in shared memory).
template <int BINS, class F>
__device__ inline void visit_elements(const RowSpan& span, const Level& level, const Strides& s, std::uint32_t first,
                                      std::uint32_t from, std::uint32_t count, int bins, const F& f) {
    bins = BINS > 0 ? BINS : bins;
    for (std::uint32_t e = from + threadIdx.x; e < count; e += threads) {
        const std::uint32_t row = e / bins, bin = e - row * bins, point = row / 4;
        const std::int64_t where = span.start + (span.flat ? point * s.x : point_offset(level, s, first + point));
        f(where + row % 4 * s.side + bin, row * pitch_of(bins) + bin);
    }
}

// Every element of the block's rows; where they lie end to end, four at a time: quad(element offset, place) with four
// adjacent places.
template <int BINS, class T, class F, class Quad>
__device__ inline void visit_rows(const Level& level, const Strides& s, const T* data, std::uint32_t image,
                                  std::uint32_t first, std::uint32_t rows, int bins, const F& f, const Quad& quad) {
    bins = BINS > 0 ? BINS : bins;
    const std::uint32_t count = rows * bins;
    const RowSpan span(level, s, data, image, first, bins);
    std::uint32_t from = 0;
    if (span.end_to_end) {
        from = count / 4 * 4;
        for (std::uint32_t e = 4 * threadIdx.x; e < from; e += 4 * threads) quad(span.start + e, e);
    }
    visit_elements<BINS>(span, level, s, first, from, count, bins, f);
}

template <int BINS, class T>
__device__ inline void rows_to_shared(const Level& level, std::uint32_t image, std::uint32_t first, std::uint32_t rows,
                                      int bins, float* tile) {
    const T* data = static_cast<const T*>(level.logits);
    visit_rows<BINS>(level, level.strides, data, image, first, rows, bins,
                     [&](std::int64_t element, std::uint32_t place) { tile[place] = widen(data[element]); },
                     [&](std::int64_t element, std::uint32_t place) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(data + element);
        for (int i = 0; i < 4; ++i) tile[place + i] = widen(four.value[i]);
    });
}

// The way back; rounds to T.
template <int BINS, class T>
__device__ inline void rows_from_shared(const Level& level, std::uint32_t image, std::uint32_t first,
                                        std::uint32_t rows, int bins, const float* tile) {
    T* const to = static_cast<T*>(level.grad_logits);
    visit_rows<BINS>(level, level.grad_strides, to, image, first, rows, bins,
                     [&](std::int64_t element, std::uint32_t place) { to[element] = narrow<T>(tile[place]); },
                     [&](std::int64_t element, std::uint32_t place) { store_four(to + element, tile + place); });
}

// A point of the block: the `local`-th from its first. Past the end of the level it does not exist.
struct BlockPoint {
    std::uint32_t point, row, column;  // in the level
    std::int64_t place;                // in (B, A)
    bool exists;

    __device__ BlockPoint(const Chunk& chunk, const Level& level, std::int64_t points, unsigned local)
        : point(chunk.first + local), row(point / std::uint32_t(level.width)),
          column(point - row * std::uint32_t(level.width)), place(chunk.image * points + level.first_point + point),
          exists(point < std::uint32_t(level.height * level.width)) {}

    __device__ void cell(float offset, float* to) const {
        to[0] = float(column) + offset;
        to[1] = float(row) + offset;
    }

    __device__ std::int64_t offset_in(const Strides& s) const { return row * s.y + column * s.x; }

    template <class T> __device__ MemoryRow<T> row_of(const Level& level, std::uint32_t image, int side) const {
        const T* at = static_cast<const T*>(level.logits) + image * level.strides.image + side * level.strides.side;
        return {at + offset_in(level.strides), level.strides.bin};
    }
};

// Of a block of one thread a point, the few points with work to do: all threads share their sides out.
struct Chosen {
    std::uint32_t* list;  // 1 + threads words of shared memory: how many, and which
    std::uint32_t count;  // the same for all threads

    // `own`: is the thread's point one of them? Two barriers.
    __device__ Chosen(bool own, std::uint32_t* list) : list(list) {
        if (threadIdx.x == 0) list[0] = 0;
        __syncthreads();
        if (own) list[1 + atomic_add(list, 1u)] = threadIdx.x;
        __syncthreads();
        count = list[0];
    }

    // f(point, side) of the thread's part. The order of the points is any: what f leaves has a place of its own.
    template <class F> __device__ void each_side(const F& f) const {
        for (std::uint32_t i = threadIdx.x; i < 4 * count; i += threads) {
            const std::uint32_t side = i / count;
            f(list[1 + i - side * count], int(side));
        }
    }
};

}  // namespace gflv2::cuda
