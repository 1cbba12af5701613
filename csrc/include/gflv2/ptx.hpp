// Single instructions of a GPU that C++ has no words for, one function each, and beside each its twin: the same for the
// emulation (csrc/simt) and for GPUs that lack the instruction. tests/simt/test_ptx.py holds the twins to the
// instructions' description (PTX ISA 8.8, section 9.7). The CPU code includes this header and uses nothing of it.
//
// An approximate instruction may be off by some units in the last place. The emulated twin is off by as many, up or
// down as the bits of the argument say, so that the parity tests on `simt` meet the largest error that is allowed to
// a GPU. Equal arguments still give equal results.
#pragma once

#include <cmath>
#include <cstdint>

#include "gflv2/macros.hpp"
#include "gflv2/storage.hpp"

GFLV2_BEGIN
namespace ptx {

// The larger, the smaller; a NaN in either argument gives a NaN.
GFLV2_HD float max_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
#else
    return a > b || a != a ? a : b;
#endif
}

GFLV2_HD float min_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
#else
    return a < b || a != a ? a : b;
#endif
}

// What ftz does to a subnormal number.
GFLV2_HD float flushed(float value) {
    return (as_bits(value) & 0x7f800000u) == 0 ? as_float(as_bits(value) & 0x80000000u) : value;
}

// `value` moved by up to `most` units in the last place; which way and how far follows from `bits`. Zero, infinity, NaN
// and what would become one of them stay.
GFLV2_HD float moved(float value, std::uint32_t bits, int most) {
    const std::uint32_t own = as_bits(value), magnitude = own & 0x7fffffffu;
    if (magnitude < 0x00800010u || magnitude > 0x7f7ffff0u) return value;
    return as_float(own + std::uint32_t(int((bits * 2654435761u >> 16) % unsigned(2 * most + 1)) - most));
}

// 2^x within 2 units in the last place; subnormal arguments and results count as 0; exactly 1 for 0.
GFLV2_HD float exp2(float x) {
#if defined(__CUDA_ARCH__)
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    const float argument = flushed(x);
    if (argument == 0.0f) return 1.0f;
    return flushed(moved(float(std::exp2(double(argument))), as_bits(x), 2));
#endif
}

// a/b within 2 units in the last place; 0 for 2^126 < b < 2^128; subnormal numbers count as 0.
GFLV2_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
    float result;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
#else
    const float over = flushed(a), under = flushed(b);
    if (std::fabs(under) > 0x1p126f && std::fabs(under) < INFINITY)
        return std::fabs(over) < INFINITY ? over * 0.0f : NAN;  // infinity times the reciprocal, 0
    return flushed(moved(over / under, as_bits(a) ^ as_bits(b) * 40503u, 2));
#endif
}

// √x within 1 unit in the last place; subnormal numbers count as 0.
GFLV2_HD float root(float x) {
#if defined(__CUDA_ARCH__)
    float result;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return moved(std::sqrt(flushed(x)), as_bits(x), 1);
#endif
}

// Two numbers rounded to T, a 16-bit type, as they lie in memory: `low` first. Nearest, ties to even; a NaN becomes
// one, with whichever bits.
template <class T> GFLV2_HD std::uint32_t narrow_pair(float low, float high) {
    return std::uint32_t(narrow<T>(low).bits) | std::uint32_t(narrow<T>(high).bits) << 16;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <> GFLV2_HD std::uint32_t narrow_pair<bfloat16>(float low, float high) {
    std::uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
template <> GFLV2_HD std::uint32_t narrow_pair<half>(float low, float high) {
    std::uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
#endif

// The larger, the smaller of two pairs of T; a NaN in either number gives a NaN, with whichever bits.
template <class T> GFLV2_HD std::uint32_t pair_of(float (*choose)(float, float), std::uint32_t a, std::uint32_t b) {
    const float low = choose(widen(T{std::uint16_t(a)}), widen(T{std::uint16_t(b)}));
    return narrow_pair<T>(low, choose(widen(T{std::uint16_t(a >> 16)}), widen(T{std::uint16_t(b >> 16)})));
}
template <class T> GFLV2_HD std::uint32_t max_nan_pair(std::uint32_t a, std::uint32_t b) {
    return pair_of<T>(max_nan, a, b);
}
template <class T> GFLV2_HD std::uint32_t min_nan_pair(std::uint32_t a, std::uint32_t b) {
    return pair_of<T>(min_nan, a, b);
}
// The larger of two pairs of T; of a number and a NaN the number.
GFLV2_HD float max_number(float a, float b) { return a != a || a < b ? b : a; }
template <class T> GFLV2_HD std::uint32_t max_pair(std::uint32_t a, std::uint32_t b) {
    return pair_of<T>(max_number, a, b);
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define GFLV2_PAIR(name, T, instruction)                                           \
    template <> GFLV2_HD std::uint32_t name<T>(std::uint32_t a, std::uint32_t b) { \
        std::uint32_t both;                                                        \
        asm(instruction " %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));             \
        return both;                                                               \
    }
GFLV2_PAIR(max_nan_pair, bfloat16, "max.NaN.bf16x2")
GFLV2_PAIR(min_nan_pair, bfloat16, "min.NaN.bf16x2")
GFLV2_PAIR(max_nan_pair, half, "max.NaN.f16x2")
GFLV2_PAIR(max_pair, bfloat16, "max.bf16x2")
GFLV2_PAIR(max_pair, half, "max.f16x2")
GFLV2_PAIR(min_nan_pair, half, "min.NaN.f16x2")
#undef GFLV2_PAIR
#endif

// Byte n of a word, from the lowest.
GFLV2_HD std::uint32_t byte_of(std::uint32_t word, int n) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(word, 0, 0x4440 + n);
#else
    return word >> 8 * n & 0xff;
#endif
}

// The value of the first rank that equals `own`, and that rank is used up; `otherwise` where there is none.
GFLV2_HD float take_rank(float own, float (&ranks)[4], const float (&values)[4], float otherwise) {
#if defined(__CUDA_ARCH__)
    asm("{\n"
        ".reg .pred here, left0, left1, left2;\n"
        "setp.eq.f32 here|left0, %5, %1;\n"
        "@here mov.f32 %0, %6;\n"
        "@here mov.f32 %1, 0f7fffffff;\n"
        "setp.eq.and.f32 here|left1, %5, %2, left0;\n"
        "@here mov.f32 %0, %7;\n"
        "@here mov.f32 %2, 0f7fffffff;\n"
        "setp.eq.and.f32 here|left2, %5, %3, left1;\n"
        "@here mov.f32 %0, %8;\n"
        "@here mov.f32 %3, 0f7fffffff;\n"
        "setp.eq.and.f32 here, %5, %4, left2;\n"
        "@here mov.f32 %0, %9;\n"
        "@here mov.f32 %4, 0f7fffffff;\n"
        "}"
        : "+f"(otherwise), "+f"(ranks[0]), "+f"(ranks[1]), "+f"(ranks[2]), "+f"(ranks[3])
        : "f"(own), "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]));
    return otherwise;
#else
    for (int j = 0; j < 4; ++j) {
        if (own == ranks[j]) {
            ranks[j] = NAN;
            return values[j];
        }
    }
    return otherwise;
#endif
}

// No instruction: what the compiler knows of the number ends here. It would else keep in registers, or in local memory,
// what it has formed from it before and is cheap to form again.
GFLV2_HD void forget([[maybe_unused]] std::uint32_t& word) {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(word));
#endif
}
GFLV2_HD void forget([[maybe_unused]] float& word) {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+f"(word));
#endif
}

}  // namespace ptx
GFLV2_END
