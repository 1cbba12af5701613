// float16 and bfloat16 to float and back, rounding to nearest even, on host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "gflv2/macros.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

// The type in which an element type is computed: float, or double for double.
template <class T> struct Compute {
    using type = float;
};
template <> struct Compute<double> {
    using type = double;
};
template <class T> using compute_t = typename Compute<T>::type;

GFLV2_HD float as_float(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

GFLV2_HD std::uint32_t as_bits(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

GFLV2_HD float widen(float value) { return value; }
GFLV2_HD double widen(double value) { return value; }
GFLV2_HD float widen(bfloat16 value) { return as_float(std::uint32_t(value.bits) << 16); }

GFLV2_HD float widen(half value) {
#if defined(__CUDA_ARCH__)
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#else
    // The exponent is 112 too small after the shift; a product repairs normal and subnormal numbers alike.
    const std::uint32_t magnitude = std::uint32_t(value.bits & 0x7fffu) << 13;
    const std::uint32_t wide =
        magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : as_bits(as_float(magnitude) * 0x1p112f);
    return as_float(wide | std::uint32_t(value.bits & 0x8000u) << 16);
#endif
}

template <class T> GFLV2_HD T narrow(compute_t<T> value);
template <> GFLV2_HD float narrow<float>(float value) { return value; }
template <> GFLV2_HD double narrow<double>(double value) { return value; }

template <> GFLV2_HD bfloat16 narrow<bfloat16>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    bfloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));  // a NaN becomes 0x7fff
    return result;
#else
    const std::uint32_t bits = as_bits(value);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bfloat16{std::uint16_t(is_nan ? (bits >> 16) | 0x40u : rounded)};
#endif
}

template <> GFLV2_HD half narrow<half>(float value) {
#if defined(__CUDA_ARCH__)
    half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    const std::uint32_t bits = as_bits(value), magnitude = bits & 0x7fffffffu;
    std::uint32_t result;
    if (magnitude >= 0x47800000u) {  // 65536 and above, infinity, NaN
        result = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa, and rounds
        result = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    } else {
        result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return half{std::uint16_t(result | (bits >> 16 & 0x8000u))};
#endif
}

GFLV2_END
