// Where bins lie side by side (channels_last, rows), the 16-bit rows of a tile of points travel through shared memory,
// which holds them as memory does: (points, 4, BINS). A thread takes the rows of one side of two points from there, as
// row_pairs.cuh wants them, and puts their gradients there.
#pragma once

#include <cstdint>

#include "cuda/level_rows.cuh"
#include "cuda/row_pairs.cuh"
#include "gflv2/instances.hpp"

namespace gflv2::cuda {

// A row of 4n + 1 bins begins `side` elements behind a place of eight bytes. What follows is compiled for each side.
template <class F> __device__ inline void at_side(int side, const F& f) {
    switch (side) {
        case 0: return f(constant<0>);
        case 1: return f(constant<1>);
        case 2: return f(constant<2>);
        default: return f(constant<3>);
    }
}

template <class T, int BINS> struct StagedPairs {
    static_assert(sizeof(T) == 2 && BINS % 4 == 1);
    static constexpr int words = (BINS + 3) / 2;  // from that place on, which hold a row of any side

    T* tile;  // of shared memory
    int side;

    __device__ void read(Pairs<T, BINS>& z, const std::uint32_t (&point)[2]) const {
        std::uint32_t word[2][words];
        each<2>(2, [&](int row) {
            const Two<std::uint32_t>* const from = reinterpret_cast<const Two<std::uint32_t>*>(at(point[row]));
            each<words / 2>(0, [&](int i) {
                const Two<std::uint32_t> two = from[i];
                word[row][2 * i] = two.value[0];
                word[row][2 * i + 1] = two.value[1];
            });
        });
        at_side(side, [&](auto number) {
            constexpr int first = decltype(number)::value;
            each<BINS>(0, [&](int b) {
                const int place = first + b;
                z.word[0][b] = halves(word[0][place / 2], word[1][place / 2], place % 2);
            });
        });
    }

    // Of the rows that are `valid`. The words at either end hold an element of the next side too.
    __device__ void write(const Pairs<T, BINS>& value, const std::uint32_t (&point)[2], const bool (&valid)[2]) const {
        at_side(side, [&](auto number) {
            constexpr int first = decltype(number)::value;
            constexpr int odd = first % 2, alone = odd ? 0 : BINS - 1;
            each<2>(2, [&](int row) {
                if (!valid[row]) return;
                T* const to = at(point[row]) + first;
                to[alone] = value.get(row, alone);
                each<BINS / 2>(0, [&](int i) {
                    const int b = odd + 2 * i;
                    *reinterpret_cast<std::uint32_t*>(to + b) = halves(value.word[0][b], value.word[0][b + 1], row);
                });
            });
        });
    }

private:
    __device__ T* at(std::uint32_t point) const { return tile + (4 * point + side) * BINS - side; }

    // The lower or the upper halves of two words.
    __device__ static std::uint32_t halves(std::uint32_t first, std::uint32_t second, int upper) {
        return upper ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
    }
};

// A tile of up to POINTS points whose rows lie end to end. A thread has some loads on their way at a time; four would not
// fit the registers of backward on sm_100.
template <int BINS, int POINTS, class T> __device__ inline void copy_tile(const T* from, T* to, std::uint32_t points) {
    constexpr int at_once = 3, quads = POINTS * BINS, batches = (quads + threads * at_once - 1) / (threads * at_once);
    each<batches>(0, [&](int batch) {
        Four<T> found[at_once];
        const auto all = [&](const auto& use) {
            each<at_once>(0, [&](int i) {
                const std::uint32_t first = (batch * at_once + i) * threads, quad = first + threadIdx.x;
                if (first < quads && quad < points * BINS) use(i, 4 * quad);
            });
        };
        all([&](int i, std::uint32_t at) { found[i] = *reinterpret_cast<const Four<T>*>(from + at); });
        all([&](int i, std::uint32_t at) { *reinterpret_cast<Four<T>*>(to + at) = found[i]; });
    });
}

// The tile that begins at point `first`, and its way back.
template <int BINS, int POINTS, class T>
__device__ inline void tile_to_shared(const Level& level, std::uint32_t image, std::uint32_t first,
                                      std::uint32_t points, T* tile) {
    const T* const data = static_cast<const T*>(level.logits);
    const RowSpan span(level, level.strides, data, image, first, BINS);
    if (span.end_to_end) return copy_tile<BINS, POINTS>(data + span.start, tile, points);
    visit_elements<BINS>(span, level, level.strides, first, 0, 4 * BINS * points, BINS,
                         [&](std::int64_t element, std::uint32_t place) { tile[place] = data[element]; });
}

template <int BINS, int POINTS, class T>
__device__ inline void tile_from_shared(const Level& level, std::uint32_t image, std::uint32_t first,
                                        std::uint32_t points, const T* tile) {
    T* const data = static_cast<T*>(level.grad_logits);
    const RowSpan span(level, level.grad_strides, data, image, first, BINS);
    if (span.end_to_end) return copy_tile<BINS, POINTS>(tile, data + span.start, points);
    visit_elements<BINS>(span, level, level.grad_strides, first, 0, 4 * BINS * points, BINS,
                         [&](std::int64_t element, std::uint32_t place) { data[element] = tile[place]; });
}

}  // namespace gflv2::cuda
