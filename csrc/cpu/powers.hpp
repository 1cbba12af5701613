// gflv2/powers.hpp for vectors of float.
#pragma once

#include "cpu/simd.hpp"
#include "gflv2/powers.hpp"

GFLV2_BEGIN

GFLV2_HD Floats square_root(Floats value) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX2__)
    return (Floats)_mm256_sqrt_ps((__m256)value);
#elif defined(__SSE__)
    return (Floats)__builtin_ia32_sqrtps(value);
#else
    for (int i = 0; i < lanes<float>; ++i) value[i] = sqrtf(value[i]);
    return value;
#endif
}

GFLV2_HD Floats double_power(Floats base, double exponent) {
    for (int i = 0; i < lanes<float>; ++i) base[i] = double_power(base[i], exponent);
    return base;
}

GFLV2_END
