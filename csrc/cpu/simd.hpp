// Vectors of numbers, one SIMD register wide, on the vector types of GCC and Clang: the same source for every
// instruction set, intrinsics only where the compiler does not find the instruction by itself. GFLV2_VECTOR_BYTES is
// the width of a register.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/storage.hpp"

GFLV2_BEGIN

using Floats = float __attribute__((vector_size(GFLV2_VECTOR_BYTES)));
using Ints = std::int32_t __attribute__((vector_size(GFLV2_VECTOR_BYTES)));
using Words = std::uint32_t __attribute__((vector_size(GFLV2_VECTOR_BYTES)));
using Halves = std::uint16_t __attribute__((vector_size(GFLV2_VECTOR_BYTES / 2)));
using Doubles = double __attribute__((vector_size(GFLV2_VECTOR_BYTES)));
using Longs = std::int64_t __attribute__((vector_size(GFLV2_VECTOR_BYTES)));

template <class S> struct VectorOf;
template <> struct VectorOf<float> {
    using type = Floats;
    using index = Ints;
};
template <> struct VectorOf<double> {
    using type = Doubles;
    using index = Longs;
};
template <class S> using vector_t = typename VectorOf<S>::type;
template <class S> constexpr int lanes = GFLV2_VECTOR_BYTES / sizeof(S);

// --- memory: one register of elements, converted to the type of the arithmetic; alignment does not matter ---

template <class V, class T> GFLV2_HD V read(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

GFLV2_HD Floats load(const float* from) { return read<Floats>(from); }
GFLV2_HD Doubles load(const double* from) { return read<Doubles>(from); }
GFLV2_HD void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
GFLV2_HD void store(double* to, Doubles value) { std::memcpy(to, &value, sizeof value); }

GFLV2_HD Floats load(const bfloat16* from) {
    return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
}

GFLV2_HD void store(bfloat16* to, Floats value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words nan = (bits >> 16) | 0x40u;
    const Halves narrowed = __builtin_convertvector((Words)(value == value ? rounded : nan), Halves);
    std::memcpy(to, &narrowed, sizeof narrowed);
}

GFLV2_HD Floats load(const half* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Floats value;
    for (int i = 0; i < lanes<float>; ++i) value[i] = widen(from[i]);
    return value;
#endif
}

GFLV2_HD void store(half* to, Floats value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < lanes<float>; ++i) to[i] = narrow<half>(value[i]);
#endif
}

// --- arithmetic ---

GFLV2_HD Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE__)
    return (Floats)__builtin_ia32_maxps(a, b);
#else
    return a > b ? a : b;
#endif
}

GFLV2_HD Floats minimum(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE__)
    return (Floats)__builtin_ia32_minps(a, b);
#else
    return a < b ? a : b;
#endif
}

GFLV2_HD Floats quick_root(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < lanes<float>; ++i) x[i] = std::sqrt(x[i]);
    return x;
#endif
}
GFLV2_HD Doubles quick_root(Doubles x) {
    for (int i = 0; i < lanes<double>; ++i) x[i] = std::sqrt(x[i]);
    return x;
}

GFLV2_HD Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

GFLV2_HD Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
    return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}

GFLV2_HD Floats splat(float value) { return broadcast<Floats>(value); }
GFLV2_HD Doubles splat(double value) { return broadcast<Doubles>(value); }

GFLV2_HD Floats nearest_integer(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return (x + 12582912.0f) - 12582912.0f;  // 1.5·2^23 leaves no place for a fraction
#endif
}

// ⌊x⌋ for |x| < 2^22
GFLV2_HD Floats whole_part(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const Floats n = nearest_integer(x);
    return n > x ? n - 1.0f : n;
#endif
}

GFLV2_HD Doubles whole_part(Doubles x) {
    for (int i = 0; i < lanes<double>; ++i) x[i] = std::floor(x[i]);
    return x;
}

// x·2^n; n is a whole number, and the result a normal one. A NaN in x stays one.
GFLV2_HD Floats times_power_of_two(Floats x, Floats n) {
#if defined(__AVX512F__)
    return (Floats)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    return (Floats)((Ints)x + (__builtin_convertvector(n, Ints) << 23));
#endif
}

// e^x = 2^n·2^r with n = round(x·log2 e), and for 2^r, |r| ≤ 1/2, the polynomial of degree 6 with constant term 1 that
// minimises the largest relative error (4e-9). WIDE: r keeps its last digits however large n is. V: Floats, or several.
template <bool WIDE, class V> GFLV2_HD V exponential_within_range(V x) {
    constexpr float log2_e = 1.44269504089f;
    const V n = nearest_integer(V(x * log2_e));
    V r;
#if !defined(__FMA__)
    if constexpr (WIDE) {
        // ln 2 in two parts: n times the first, of 15 bits, is exact.
        r = multiply_add(n, broadcast<V>(-6.93145751953125e-1f), x);
        r = multiply_add(n, broadcast<V>(-1.42860682030941723212e-6f), r) * log2_e;
    } else
#endif
    {
        r = multiply_add(x, broadcast<V>(log2_e), V(-n));
        if constexpr (WIDE) r = multiply_add(x, broadcast<V>(1.925963033500e-8f), r);  // what log2_e lacks
    }
    V p = broadcast<V>(1.519680955e-4f);
    p = multiply_add(p, r, broadcast<V>(1.339131733e-3f));
    p = multiply_add(p, r, broadcast<V>(9.619002230e-3f));
    p = multiply_add(p, r, broadcast<V>(5.550358817e-2f));
    p = multiply_add(p, r, broadcast<V>(2.402264327e-1f));
    p = multiply_add(p, r, broadcast<V>(6.931471825e-1f));
    p = multiply_add(p, r, broadcast<V>(1.0f));
    return times_power_of_two(p, n);
}

// e^x for x ≤ 0, within two units in the last place of the largest term of a softmax. Below −87.3 the result is the
// smallest normal number, not 0: a softmax cannot tell.
GFLV2_HD Floats exponential(Floats x) {
    return exponential_within_range<false>(maximum(splat(-87.33654f), x));  // in this order a NaN in x is kept
}

// e^x for |x| ≤ 87, within two units in its last place.
GFLV2_HD Floats exponential_wide(Floats x) { return exponential_within_range<true>(x); }

// float64 serves gradient checks, not speed.
GFLV2_HD Doubles exponential(Doubles x) {
    Doubles value = x;
    for (int i = 0; i < lanes<double>; ++i) value[i] = std::exp(x[i]);
    return value;
}

GFLV2_HD Doubles exponential_wide(Doubles x) { return exponential(x); }

// Sum of the lanes below `count`, in their order, in double.
template <class V> GFLV2_HD double sum_lanes(V value, int count) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += double(value[i]);
    return sum;
}

// --- permutations ---

// Lane i of the result is lane Pattern::at(i) of a and b laid end to end.
template <class Pattern, class S, std::size_t... I>
GFLV2_HD vector_t<S> permute(vector_t<S> a, vector_t<S> b, std::index_sequence<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, Pattern::at(I)...);
#else
    using Index = typename VectorOf<S>::index;
    return __builtin_shuffle(a, b, Index{Pattern::at(I)...});
#endif
}

template <class S, class Pattern> GFLV2_HD vector_t<S> permute(vector_t<S> a, vector_t<S> b) {
    return permute<Pattern, S>(a, b, std::make_index_sequence<lanes<S>>{});
}

// Zip the lower or upper halves: a0 b0 a1 b1 …
template <int N, int FROM> struct Zip {
    static constexpr int at(int i) { return FROM + i / 2 + (i % 2 ? N : 0); }
};
// Take every second lane of a and b laid end to end, from lane FIRST.
template <int FIRST> struct Unzip {
    static constexpr int at(int i) { return 2 * i + FIRST; }
};
// One step of a transposition: exchange blocks of STEP lanes between two rows that are STEP apart.
template <int N, int STEP> struct ExchangeLow {
    static constexpr int at(int i) { return i & STEP ? i - STEP + N : i; }
};
template <int N, int STEP> struct ExchangeHigh {
    static constexpr int at(int i) { return i & STEP ? i + N : i + STEP; }
};

// Four vectors a, b, c, d to memory as a0 b0 c0 d0 a1 b1 …
template <class S> GFLV2_HD void store_interleaved(S* to, const vector_t<S>* four) {
    constexpr int n = lanes<S>;
    using Low = Zip<n, 0>;
    using High = Zip<n, n / 2>;
    const auto ac_low = permute<S, Low>(four[0], four[2]), ac_high = permute<S, High>(four[0], four[2]);
    const auto bd_low = permute<S, Low>(four[1], four[3]), bd_high = permute<S, High>(four[1], four[3]);
    store(to, permute<S, Low>(ac_low, bd_low));
    store(to + n, permute<S, High>(ac_low, bd_low));
    store(to + 2 * n, permute<S, Low>(ac_high, bd_high));
    store(to + 3 * n, permute<S, High>(ac_high, bd_high));
}

// The inverse: what v0, v1, v2 and v3 hold laid end to end is a0 b0 c0 d0 a1 b1 …
template <class S>
GFLV2_HD void deinterleave(vector_t<S> v0, vector_t<S> v1, vector_t<S> v2, vector_t<S> v3, vector_t<S>* four) {
    using Even = Unzip<0>;
    using Odd = Unzip<1>;
    const auto ac_low = permute<S, Even>(v0, v1), ac_high = permute<S, Even>(v2, v3);
    const auto bd_low = permute<S, Odd>(v0, v1), bd_high = permute<S, Odd>(v2, v3);
    four[0] = permute<S, Even>(ac_low, ac_high);
    four[2] = permute<S, Odd>(ac_low, ac_high);
    four[1] = permute<S, Even>(bd_low, bd_high);
    four[3] = permute<S, Odd>(bd_low, bd_high);
}

template <class S> GFLV2_HD void load_interleaved(const S* from, vector_t<S>* four) {
    constexpr int n = lanes<S>;
    deinterleave<S>(load(from), load(from + n), load(from + 2 * n), load(from + 3 * n), four);
}

// A vector of the quads of floats that lie at at(0), at(1), …
template <class At> GFLV2_HD Floats load_quads(const At& at) {
#if defined(__AVX512F__)
    __m512 quads = _mm512_castps128_ps512(_mm_loadu_ps(at(0)));
    quads = _mm512_insertf32x4(quads, _mm_loadu_ps(at(1)), 1);
    quads = _mm512_insertf32x4(quads, _mm_loadu_ps(at(2)), 2);
    return (Floats)_mm512_insertf32x4(quads, _mm_loadu_ps(at(3)), 3);
#elif defined(__AVX2__)
    return (Floats)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at(0))), _mm_loadu_ps(at(1)), 1);
#else
    float quads[lanes<float>];
    for (int i = 0; i < lanes<float> / 4; ++i) std::memcpy(quads + 4 * i, at(i), 4 * sizeof(float));
    return load(quads);
#endif
}

// Transpose a square of registers in place.
template <class S, int STEP = 1> GFLV2_HD void transpose(vector_t<S>* rows) {
    constexpr int n = lanes<S>;
    if constexpr (STEP < n) {
        each<n>(n, [&](int i) {
            if (!(i & STEP)) {
                const auto low = rows[i], high = rows[i + STEP];
                rows[i] = permute<S, ExchangeLow<n, STEP>>(low, high);
                rows[i + STEP] = permute<S, ExchangeHigh<n, STEP>>(low, high);
            }
        });
        transpose<S, 2 * STEP>(rows);
    }
}

// Lane i of rows[0] becomes the sum over the lanes of rows[i]: a transposition that adds what it exchanges. The rest of
// the rows is used up.
template <class S, int STEP = 1> GFLV2_HD void sum_each(vector_t<S>* rows) {
    constexpr int n = lanes<S>;
    if constexpr (STEP < n) {
        each<n>(n, [&](int i) {
            if (i % (2 * STEP) == 0) {
                const auto low = permute<S, ExchangeLow<n, STEP>>(rows[i], rows[i + STEP]);
                const auto high = permute<S, ExchangeHigh<n, STEP>>(rows[i], rows[i + STEP]);
                rows[i] = low + high;
            }
        });
        sum_each<S, 2 * STEP>(rows);
    }
}

GFLV2_END
