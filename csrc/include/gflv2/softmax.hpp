// What every operation on a row of box logits begins with: its largest scaled logit, and what becomes of the
// exponentials. V, S, Row and BINS as in gflv2/integral.hpp.
#pragma once

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

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
        return exponential(multiply_add(V(row[bin]), broadcast<V>(scale), V(-largest)));
    }
};

// Four independent sums per quantity: one long chain of additions would leave the units waiting for each other, and
// short chains round less. The same for every number of bins, constant or not, so that both forms of a kernel give the
// same bits.
template <class V, class Combine> GFLV2_HD V combine(const V (&parts)[chains], const Combine& of) {
    return of(of(parts[0], parts[1]), of(parts[2], parts[3]));
}

// max_b scale·z_b. A factor of one sign keeps or turns the order, so the product is formed once, not for every bin.
template <int BINS, class V, class S, class Row> GFLV2_HD V scaled_largest(const Row& row, int bins, S scale) {
    V extreme[chains];
    each<chains>(chains, [&](int chain) { extreme[chain] = row[0]; });
    if (scale >= S(0)) {
        each_chained<BINS>(bins, [&](int b, int chain) { extreme[chain] = maximum(V(row[b]), extreme[chain]); });
        return scale * combine(extreme, [](V a, V b) { return maximum(a, b); });
    }
    each_chained<BINS>(bins, [&](int b, int chain) { extreme[chain] = minimum(V(row[b]), extreme[chain]); });
    return scale * combine(extreme, [](V a, V b) { return minimum(a, b); });
}

GFLV2_END
