// The few elementary functions that the arithmetic of a row needs, for one number. The CPU code adds overloads for
// vectors of numbers (csrc/cpu/simd.hpp), so that one template serves a CUDA thread and a SIMD register.
#pragma once

#include <cmath>

#include "gflv2/macros.hpp"

GFLV2_BEGIN

// The number itself, or a vector with it in every lane. (x − 0 is x for every x, and costs nothing; 0 + x is not −0.)
template <class V, class S> GFLV2_HD V broadcast(S value) { return value - V{}; }

template <class S> GFLV2_HD S maximum(S a, S b) { return a > b ? a : b; }
template <class S> GFLV2_HD S minimum(S a, S b) { return a < b ? a : b; }

// ⌊x⌋
GFLV2_HD float whole_part(float x) { return floorf(x); }
GFLV2_HD double whole_part(double x) { return floor(x); }

// S: float or double; vectors have overloads of their own.
template <class S> GFLV2_HD S exponential(S x) {
#if defined(__CUDA_ARCH__)
    return exp(x);
#else
    return std::exp(x);
#endif
}

// The same for |x| ≤ 87 (float), with full relative precision: simd.hpp has a faster one for sums, where that is not
// needed.
template <class S> GFLV2_HD S exponential_wide(S x) { return exponential(x); }

// a/b, on a GPU within two units in the last place instead of half of one (a third of the instructions); b < 2^126 or
// infinite.
template <class V> GFLV2_HD V quotient(V a, V b) { return a / b; }
GFLV2_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdividef(a, b);
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
