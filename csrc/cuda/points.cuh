// The neighbouring points of one thread. 16-bit elements are read two points at a time where the layout allows it: a
// warp then moves 128 bytes per load, as with float32.
#pragma once

#include <cstdint>

#include "gflv2/launch.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/ptx.hpp"
#include "gflv2/types.hpp"

namespace gflv2::cuda {

// Two 16-bit elements in one load or store. (As a struct of two, they would often be split up again.)
template <class T> __device__ inline void load_pair(const T* at, float& first, float& second) {
    static_assert(sizeof(T) == 2);
    const std::uint32_t both = *reinterpret_cast<const std::uint32_t*>(at);
    first = widen(T{std::uint16_t(both)});
    second = widen(T{std::uint16_t(both >> 16)});
}

template <class T> __device__ inline void store_pair(T* at, float first, float second) {
    static_assert(sizeof(T) == 2);
    *reinterpret_cast<std::uint32_t*>(at) = ptx::narrow_pair<T>(first, second);
}

// Two elements in one load or store.
template <class T> struct alignas(2 * sizeof(T)) Two {
    T value[2];
};

template <int PACK> struct ThreadPoints {
    std::uint32_t point[PACK];  // clamped to the level, so that every read is in bounds
    bool valid[PACK];
};

template <int PACK> __device__ inline ThreadPoints<PACK> place_of(std::uint32_t first, std::uint32_t points) {
    ThreadPoints<PACK> place;
    each<PACK>(PACK, [&](int k) {
        const std::uint32_t point = first + k;
        place.valid[k] = point < points;
        // Past the end: the last points, a pair kept together; a level of one point has no pair.
        place.point[k] = place.valid[k] ? point : points < PACK ? 0 : points - PACK + k;
    });
    return place;
}

// Can the points of a level be read in pairs: adjacent, an even number of them, and every pair aligned?
template <class T> __device__ inline bool paired(const Level& level, const Strides& s, const void* data) {
    const bool adjacent = s.x == 1 && (level.height == 1 || s.y == level.width);
    const bool even = ((level.height * level.width | s.image | s.side | s.bin) & 1) == 0;
    return adjacent && even && reinterpret_cast<std::uintptr_t>(data) % (2 * sizeof(T)) == 0;
}

}  // namespace gflv2::cuda
