// gflv2/lanes.hpp for vectors of float: one box or point in each lane.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/simd.hpp"
#include "gflv2/lanes.hpp"

GFLV2_BEGIN

template <> struct Lanes<Floats> {
    using integers = Ints;
    using mask = Ints;
    static constexpr bool one = false;
};

// Bit i: is lane i of the mask set?
GFLV2_HD std::uint32_t lane_bits(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return std::uint32_t(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE__)
    return std::uint32_t(__builtin_ia32_movmskps((Floats)mask));
#else
    std::uint32_t bits = 0;
    for (int i = 0; i < lanes<float>; ++i) bits |= std::uint32_t(mask[i] != 0) << i;
    return bits;
#endif
}

// The lanes of `values` whose bit is set, in their order, to `to`, which has room for all of them; how many they are.
GFLV2_HD int store_chosen(std::int32_t* to, Ints values, std::uint32_t bits) {
#if defined(__AVX512F__)
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(bits), (__m512i)values));
    return __builtin_popcount(bits);
#else
    int count = 0;
    for (int i = 0; i < lanes<float>; ++i) {  // without a branch: which bits are set nobody can foresee
        to[count] = values[i];
        count += bits >> i & 1;
    }
    return count;
#endif
}

// The vector of at(0), at(1), …
template <class At, std::size_t... I> GFLV2_HD Floats gathered(const At& at, std::index_sequence<I...>) {
    return Floats{at(int(I))...};
}
template <class At> GFLV2_HD Floats gathered(const At& at) {
    return gathered(at, std::make_index_sequence<lanes<float>>{});
}

GFLV2_HD bool any(Ints mask) { return lane_bits(mask) != 0; }
GFLV2_HD Ints choose(Ints mask, Ints yes, Ints no) { return mask ? yes : no; }
GFLV2_HD Floats choose(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
GFLV2_HD Ints truncated(Floats value) { return __builtin_convertvector(value, Ints); }
GFLV2_HD Floats number(Ints value) { return __builtin_convertvector(value, Floats); }
GFLV2_HD Ints bits_of(Floats value) { return (Ints)value; }
GFLV2_HD Floats value_of(Ints bits) { return (Floats)bits; }
GFLV2_HD Ints shifted_right(Ints value, int places) { return (Ints)((Words)value >> places); }

// One double for each lane of a vector of float.
struct WideDoubles {
    Doubles low, high;
};
GFLV2_HD WideDoubles operator+(WideDoubles a, WideDoubles b) { return {a.low + b.low, a.high + b.high}; }
GFLV2_HD WideDoubles operator-(WideDoubles a, WideDoubles b) { return {a.low - b.low, a.high - b.high}; }
GFLV2_HD WideDoubles operator*(WideDoubles a, WideDoubles b) { return {a.low * b.low, a.high * b.high}; }
GFLV2_HD WideDoubles operator/(WideDoubles a, double b) { return {a.low / b, a.high / b}; }

using HalfFloats = float __attribute__((vector_size(GFLV2_VECTOR_BYTES / 2)));

GFLV2_HD WideDoubles widened(Floats value) {
    HalfFloats parts[2];
    std::memcpy(parts, &value, sizeof value);
    return {__builtin_convertvector(parts[0], Doubles), __builtin_convertvector(parts[1], Doubles)};
}

GFLV2_HD Floats narrowed(WideDoubles value) {
    const HalfFloats parts[2] = {__builtin_convertvector(value.low, HalfFloats),
                                 __builtin_convertvector(value.high, HalfFloats)};
    Floats result;
    std::memcpy(&result, parts, sizeof result);
    return result;
}

GFLV2_HD Floats root(Floats value) { return quick_root(value); }
GFLV2_HD Doubles root(Doubles value) { return quick_root(value); }
GFLV2_HD WideDoubles root(WideDoubles value) { return {root(value.low), root(value.high)}; }

GFLV2_END
