// The rows of two neighbouring points in one thread of `dgqp`: their logits as they lie in memory, the four largest of
// them, and the softmax. Of 16-bit logits a word holds one of either row, and one instruction orders both.
#pragma once

#include <cstdint>

#include "cuda/points.cuh"
#include "gflv2/dgqp.hpp"
#include "gflv2/ptx.hpp"
#include "gflv2/softmax.hpp"
#include "gflv2/storage.hpp"
#include "gflv2/types.hpp"

namespace gflv2::cuda {

constexpr int pair_ranks = 4;

// How two numbers lie in words: 16-bit ones in one, float32 in two.
template <class T> struct PairWords {
    static_assert(sizeof(T) == 2);
    using Word = std::uint32_t;
    static constexpr int count = 1;
    __device__ static Word larger(Word a, Word b) { return ptx::max_nan_pair<T>(a, b); }
    __device__ static Word smaller(Word a, Word b) { return ptx::min_nan_pair<T>(a, b); }
    __device__ static Word negative(Word a) { return a ^ 0x80008000u; }
};
template <> struct PairWords<float> {
    using Word = float;
    static constexpr int count = 2;
    __device__ static Word larger(Word a, Word b) { return ptx::max_nan(a, b); }
    __device__ static Word smaller(Word a, Word b) { return ptx::min_nan(a, b); }
    __device__ static Word negative(Word a) { return -a; }
};

// COUNT numbers of either row.
template <class T, int COUNT> struct Pairs {
    typename PairWords<T>::Word word[PairWords<T>::count][COUNT];

    __device__ float operator()(int row, int i) const { return widen(get(row, i)); }
    // As it lies in memory.
    __device__ T get(int row, int i) const {
        if constexpr (sizeof(T) == 2) return T{std::uint16_t(row ? word[0][i] >> 16 : word[0][i])};
        else return word[row][i];
    }
    // Of both rows, rounded.
    __device__ void put(int i, float first, float second) {
        if constexpr (sizeof(T) == 2) {
            word[0][i] = ptx::narrow_pair<T>(first, second);
        } else {
            word[0][i] = first;
            word[1][i] = second;
        }
    }
    __device__ void set(int row, int i, T value) {
        if constexpr (sizeof(T) == 2) {
            const std::uint32_t bits = value.bits;
            word[0][i] = row ? (word[0][i] & 0xffffu) | bits << 16 : (word[0][i] & 0xffff0000u) | bits;
        } else {
            word[row][i] = value;
        }
    }
};

// May the two rows be read, or written, together? And are bins so near to each other that a product of 32 bits leads
// from the first to any other?
template <class T> __device__ inline bool in_pairs(const Level& level, const Strides& s, const void* data) {
    return paired<T>(level, s, data) && s.bin >= 0 && s.bin <= INT32_MAX;
}

template <class T, int BINS>
__device__ inline void read_pairs(Pairs<T, BINS>& z, const Level& level, const T* side, const ThreadPoints<2>& place,
                                  bool pairs) {
    const Strides& s = level.strides;
    if (pairs) {
        const T* const from = side + place.point[0];
        const std::uint32_t step = std::uint32_t(s.bin);
        each<BINS>(BINS, [&](int b) {
            const T* const at = from + std::uint64_t(step) * std::uint32_t(b);
            if constexpr (sizeof(T) == 2) {
                z.word[0][b] = *reinterpret_cast<const std::uint32_t*>(at);
            } else {
                const Two<T> two = *reinterpret_cast<const Two<T>*>(at);
                z.word[0][b] = two.value[0];
                z.word[1][b] = two.value[1];
            }
        });
        return;
    }
    each<2>(2, [&](int row) {
        const T* const from = side + point_offset(level, s, place.point[row]);
        each<BINS>(BINS, [&](int b) {
            if (sizeof(T) == 2 && row == 0) z.word[0][b] = {};
            z.set(row, b, from[b * s.bin]);
        });
    });
}

// The numbers to the gradients.
template <class T, int BINS>
__device__ inline void write_pairs(const Pairs<T, BINS>& value, const Level& level, T* side,
                                   const ThreadPoints<2>& place, bool pairs) {
    const Strides& s = level.grad_strides;
    if (pairs) {
        if (!place.valid[0]) return;
        T* const to = side + place.point[0];
        const std::uint32_t step = std::uint32_t(s.bin);
        each<BINS>(BINS, [&](int b) {
            T* const at = to + std::uint64_t(step) * std::uint32_t(b);
            if constexpr (sizeof(T) == 2) *reinterpret_cast<std::uint32_t*>(at) = value.word[0][b];
            else *reinterpret_cast<Two<T>*>(at) = {{value.word[0][b], value.word[1][b]}};
        });
        return;
    }
    each<2>(2, [&](int row) {
        if (!place.valid[row]) return;
        T* const to = side + point_offset(level, s, place.point[row]);
        each<BINS>(BINS, [&](int b) { to[b * s.bin] = value.get(row, b); });
    });
}

// The larger one first.
template <class Of, class Word> __device__ inline void order(Word& a, Word& b) {
    const Word larger = Of::larger(a, b);
    b = Of::smaller(a, b);
    a = larger;
}

// The four largest of N, descending: fours are sorted, and merged one after the other.
template <class Of, int N, class Word> __device__ inline void four_largest(const Word (&z)[N], Word (&top)[4]) {
    static_assert(N >= 4);
    const auto sorted = [&](int first, Word(&four)[4]) {
        each<4>(4, [&](int i) { four[i] = z[first + i]; });
        order<Of>(four[0], four[1]);
        order<Of>(four[2], four[3]);
        order<Of>(four[0], four[2]);
        order<Of>(four[1], four[3]);
        order<Of>(four[1], four[2]);
    };
    sorted(0, top);
    each<N / 4 - 1>(N / 4 - 1, [&](int i) {
        Word next[4];
        sorted(4 * i + 4, next);
        each<4>(4, [&](int j) { top[j] = Of::larger(top[j], next[3 - j]); });
        order<Of>(top[0], top[2]);
        order<Of>(top[1], top[3]);
        order<Of>(top[0], top[1]);
        order<Of>(top[2], top[3]);
    });
    each<N % 4>(N % 4, [&](int i) {
        Word rest = z[N / 4 * 4 + i];
        each<3>(3, [&](int j) { order<Of>(top[j], rest); });
        top[3] = Of::larger(top[3], rest);
    });
}

// The softmax of one of the two rows.
struct PairSoftmax {
    float steep, largest, inverse;  // a term is softmax_term(z, steep, largest), the sum of all is 1/inverse
    __device__ float term(float z) const { return softmax_term(z, steep, largest); }
};

// Both rows of a thread. Logits of a negative scale are turned, so that the largest are on top; `scale` is the
// scale's size.
template <class T, int BINS> struct RowPair {
    Pairs<T, BINS> z;
    Pairs<T, pair_ranks> top;
    PairSoftmax softmax[2];

    // From the logits in z.
    __device__ void form(float scale) {
        using Of = PairWords<T>;
        if (scale < 0.0f)
            each<Of::count>(0,
                            [&](int i) { each<BINS>(0, [&](int b) { z.word[i][b] = Of::negative(z.word[i][b]); }); });
        const float size = scale < 0.0f ? -scale : scale;
        each<Of::count>(0, [&](int i) {
            if (scale != 0.0f) four_largest<Of>(z.word[i], top.word[i]);
            else each<pair_ranks>(0, [&](int j) { top.word[i][j] = z.word[i][j]; });  // all terms are equal
        });
        each<2>(0, [&](int row) {
            const float largest = largest_exponent(top(row, 0), size);
            softmax[row] = {exponent_scale(size, largest), largest, 0.0f};
            float total[chains] = {};
            each<BINS>(0, [&](int b) { total[b % chains] += softmax[row].term(z(row, b)); });
            softmax[row].inverse = quotient(1.0f, combine(total, [](float a, float b) { return a + b; }));
        });
    }

    // What was formed of the logits is formed anew.
    __device__ void forget() {
        each<PairWords<T>::count>(0, [&](int i) { each<BINS>(0, [&](int b) { ptx::forget(z.word[i][b]); }); });
    }

    // The largest terms of a row.
    __device__ void ranks(int row, float (&terms)[pair_ranks]) const {
        each<pair_ranks>(0, [&](int j) { terms[j] = softmax[row].term(top(row, j)); });
    }
};

}  // namespace gflv2::cuda
