// N vectors that go through the same arithmetic side by side. One chain of dependent operations leaves a core waiting
// for each result: an exponential, a division and a logarithm take some 130 cycles one after the other, but the
// operations of one vector could start every 15.
#pragma once

#include "cpu/simd.hpp"

GFLV2_BEGIN

template <int N> struct Several {
    Floats part[N];
};

template <int N, class F> GFLV2_HD Several<N> each_part(const F& f) {
    Several<N> result;
    each<N>(N, [&](int i) { result.part[i] = f(i); });
    return result;
}

#define GFLV2_PARTWISE(OPERATOR)                                                                       \
    template <int N> GFLV2_HD Several<N> operator OPERATOR(const Several<N>& a, const Several<N>& b) { \
        return each_part<N>([&](int i) { return a.part[i] OPERATOR b.part[i]; });                      \
    }                                                                                                  \
    template <int N> GFLV2_HD Several<N> operator OPERATOR(const Several<N>& a, float b) {             \
        return each_part<N>([&](int i) { return a.part[i] OPERATOR b; });                              \
    }                                                                                                  \
    template <int N> GFLV2_HD Several<N> operator OPERATOR(float a, const Several<N>& b) {             \
        return each_part<N>([&](int i) { return a OPERATOR b.part[i]; });                              \
    }
GFLV2_PARTWISE(+)
GFLV2_PARTWISE(-)
GFLV2_PARTWISE(*)
GFLV2_PARTWISE(/)
#undef GFLV2_PARTWISE

template <int N> GFLV2_HD Several<N> operator-(const Several<N>& a) {
    return each_part<N>([&](int i) { return -a.part[i]; });
}
template <int N> GFLV2_HD Several<N> multiply_add(const Several<N>& a, const Several<N>& b, const Several<N>& c) {
    return each_part<N>([&](int i) { return multiply_add(a.part[i], b.part[i], c.part[i]); });
}
template <int N> GFLV2_HD Several<N> maximum(const Several<N>& a, const Several<N>& b) {
    return each_part<N>([&](int i) { return maximum(a.part[i], b.part[i]); });
}
template <int N> GFLV2_HD Several<N> minimum(const Several<N>& a, const Several<N>& b) {
    return each_part<N>([&](int i) { return minimum(a.part[i], b.part[i]); });
}
template <int N> GFLV2_HD Several<N> quick_root(const Several<N>& a) {
    return each_part<N>([&](int i) { return quick_root(a.part[i]); });
}
template <int N> GFLV2_HD Several<N> nearest_integer(const Several<N>& a) {
    return each_part<N>([&](int i) { return nearest_integer(a.part[i]); });
}
template <int N> GFLV2_HD Several<N> times_power_of_two(const Several<N>& a, const Several<N>& n) {
    return each_part<N>([&](int i) { return times_power_of_two(a.part[i], n.part[i]); });
}
template <int N> GFLV2_HD Several<N> exponential_wide(const Several<N>& x) { return exponential_within_range<true>(x); }

template <int N> GFLV2_HD Several<N> load_several(const float* from) {
    return each_part<N>([&](int i) { return load(from + i * lanes<float>); });
}
template <int N> GFLV2_HD void store(float* to, const Several<N>& value) {
    each<N>(N, [&](int i) { store(to + i * lanes<float>, value.part[i]); });
}

// Is every number of every part below the bound? A NaN is not.
template <int N> GFLV2_HD bool all_below(const Several<N>& value, float bound) {
#if defined(__AVX512F__)
    __mmask16 below = 0xffff;
    each<N>(N, [&](int i) {
        below = _mm512_mask_cmp_ps_mask(below, (__m512)value.part[i], (__m512)splat(bound), _CMP_LT_OQ);
    });
    return below == 0xffff;
#else
    Ints below = value.part[0] < bound;
    each<N>(N, [&](int i) { below &= value.part[i] < bound; });
    return !any(~below);
#endif
}

GFLV2_END
