// What every operation on a row of box logits begins with: its largest scaled logit, and what becomes of the
// exponentials. V, S, Row and BINS as in gflv2/integral.hpp.
#pragma once

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// The larger or the smaller of two numbers. A NaN in b stays one; on a GPU, one in a too.
template <class V> GFLV2_HD V larger(V a, V b) { return maximum(a, b); }
template <class V> GFLV2_HD V smaller(V a, V b) { return minimum(a, b); }
#if GFLV2_ON_GPU
template <> GFLV2_HD float larger(float a, float b) { return ptx::max_nan(a, b); }
template <> GFLV2_HD float smaller(float a, float b) { return ptx::min_nan(a, b); }
#endif

// A term of the softmax of scale·z is exp(scale·z − max scale·z). A GPU forms it as 2^(s·z − max s·z) with s = scale·
// log2 e, so that the change of base costs nothing. `largest` is that maximum; what it is rounded by is the same for
// all terms of a row, and cancels. From 2^30 on it might be too much for an exponent. There s is rounded up to a power
// of two, and the product exact; terms that differ are so far from each other that all but the largest are 0.
template <class S, class V> GFLV2_HD S exponent_scale(S scale, V) { return scale; }
template <class V, class S> GFLV2_HD V largest_exponent(V logit, S scale) { return scale * logit; }
template <class V, class S> GFLV2_HD V softmax_term(V logit, S exponent_scale, V largest) {
    return exponential(multiply_add(logit, broadcast<V>(exponent_scale), V(-largest)));
}
#if GFLV2_ON_GPU
template <> GFLV2_HD float exponent_scale(float scale, float largest) {
    const float binary = scale * log2_of_e;
    const float power_of_two = as_float((as_bits(binary) + 0x7fffffu) & 0xff800000u);
    return fabsf(largest) >= 0x1p30f ? power_of_two : binary;
}
template <> GFLV2_HD float largest_exponent(float logit, float scale) {
    return logit * exponent_scale(scale, logit * (scale * log2_of_e));
}
template <> GFLV2_HD float softmax_term(float logit, float exponent_scale, float largest) {
#if defined(GFLV2_SIMT)
    // The emulation rounds the product by itself, one error more for the tests to bear. From 8 on it would be more than
    // the units in the last place by which a GPU's exp2 may be off.
    if (fabsf(largest) >= 8.0f) return ptx::exp2(fmaf(logit, exponent_scale, -largest));
#endif
    return ptx::exp2(multiply_add(logit, exponent_scale, -largest));
}
#endif

// Keeps the exponentials in an array (registers on the GPU, level-1 cache at most on a CPU).
template <class V, int N> struct KeptExponentials {
    V kept[N];
    GFLV2_HD void keep(int bin, V e) { kept[bin] = e; }
    template <class Row, class S> GFLV2_HD V get(const Row&, int bin, S, V) const { return kept[bin]; }
};

// Keeps nothing: forward needs the sums alone.
struct NoExponentials {
    template <class V> GFLV2_HD void keep(int, V) {}
};

// Keeps nothing and computes them again: for a number of bins unknown to the compiler on the GPU, where an array would
// lie in local memory.
template <class V> struct RecomputedExponentials {
    GFLV2_HD void keep(int, V) {}
    template <class Row, class S> GFLV2_HD V get(const Row& row, int bin, S scale, V largest) const {
        return softmax_term(V(row[bin]), exponent_scale(scale, largest), largest);
    }
};

// Four independent sums per quantity: one long chain of additions would leave the units waiting for each other, and
// short chains round less. The same for every number of bins, constant or not, so that both forms of a kernel give the
// same bits.
template <class V, class Combine> GFLV2_HD V combine(const V (&parts)[chains], const Combine& of) {
    return of(of(parts[0], parts[1]), of(parts[2], parts[3]));
}

// The logit z_b for which scale·z_b is largest: a factor of one sign keeps or turns the order.
template <int BINS, class V, class S, class Row> GFLV2_HD V leading_logit(const Row& row, int bins, S scale) {
    V extreme[chains];
    each<chains>(chains, [&](int chain) { extreme[chain] = row[0]; });
    if (scale >= S(0)) {
        each_chained<BINS>(bins, [&](int b, int chain) { extreme[chain] = larger(V(row[b]), extreme[chain]); });
        return combine(extreme, [](V a, V b) { return larger(a, b); });
    }
    each_chained<BINS>(bins, [&](int b, int chain) { extreme[chain] = smaller(V(row[b]), extreme[chain]); });
    return combine(extreme, [](V a, V b) { return smaller(a, b); });
}

// max_b scale·z_b.
template <int BINS, class V, class S, class Row> GFLV2_HD V scaled_largest(const Row& row, int bins, S scale) {
    return scale * leading_logit<BINS, V>(row, bins, scale);
}

GFLV2_END
