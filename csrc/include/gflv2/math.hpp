// The few elementary functions that the arithmetic of a row needs, for one number. The CPU code adds overloads for
// vectors of numbers (csrc/cpu/simd.hpp), so that one template serves a CUDA thread and a SIMD register.
#pragma once

#include <cmath>

#include "gflv2/macros.hpp"
#include "gflv2/ptx.hpp"

GFLV2_BEGIN

// The number itself, or a vector with it in every lane. (x − 0 is x for every x, and costs nothing; 0 + x is not −0.)
template <class V, class S> GFLV2_HD V broadcast(S value) { return value - V{}; }

template <class S> GFLV2_HD S maximum(S a, S b) { return a > b ? a : b; }
template <class S> GFLV2_HD S minimum(S a, S b) { return a < b ? a : b; }

// ⌊x⌋
GFLV2_HD float whole_part(float x) { return floorf(x); }
GFLV2_HD double whole_part(double x) { return floor(x); }

// For the terms of a softmax, x ≤ 0, where an error counts in units of the largest term, which is 1. S: float or
// double; vectors have overloads of their own. On a GPU the rounding of x·log2 e adds at most |x|·e^x ≤ 0.37 halves of
// a unit in the last place.
constexpr float log2_of_e = 1.44269504089f;

template <class S> GFLV2_HD S exponential(S x) {
#if defined(__CUDA_ARCH__)
    return exp(x);
#else
    return std::exp(x);
#endif
}
#if GFLV2_ON_GPU
template <> GFLV2_HD float exponential(float x) { return ptx::exp2(x * log2_of_e); }
#endif

// The same for |x| ≤ 87 (float), with full relative precision.
template <class S> GFLV2_HD S exponential_wide(S x) {
#if defined(__CUDA_ARCH__)
    return exp(x);
#else
    return std::exp(x);
#endif
}

// √x; on a GPU within a unit in the last place, and 0 for a subnormal x.
GFLV2_HD float quick_root(float x) {
#if GFLV2_ON_GPU
    return ptx::root(x);
#else
    return std::sqrt(x);
#endif
}
GFLV2_HD double quick_root(double x) { return std::sqrt(x); }

// a/b, on a GPU within two units in the last place instead of half of one (a fifth of the instructions); b < 2^126 or
// infinite, neither of them subnormal.
template <class V> GFLV2_HD V quotient(V a, V b) { return a / b; }
GFLV2_HD float quotient(float a, float b) {
#if GFLV2_ON_GPU
    return ptx::quotient(a, b);
#else
    return a / b;
#endif
}

// a·b + c, fused where the hardware has it. Not for values on which a comparison hangs: contraction is off elsewhere so
// that those have the same bits on every backend.
GFLV2_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
GFLV2_HD double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
    return fma(a, b, c);
#else
    return a * b + c;
#endif
}

GFLV2_END
