// The arithmetic of one row of `integral`: softmax over the bins of one side, its expectation, and the derivatives
// (arXiv 2006.04388, equation 5).
//
//   t_b = scale·z_b,   P = softmax(t),   d = Σ_b P_b·project_b
//   ∂d/∂t_b = P_b·(project_b − d),   ∂d/∂z_b = scale·∂d/∂t_b,   ∂d/∂scale = Σ_b z_b·∂d/∂t_b,   ∂d/∂project_b = P_b
//
// V is a number (a CUDA thread) or a vector of numbers (one point in each lane of a SIMD register), S its element type.
// `Row` gives logit b as row[b]: an array in registers, or memory. BINS > 0 is the number of bins as a constant, which
// unrolls the loops and keeps the array in registers; BINS = 0 takes it from `bins`.
#pragma once

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// What the first two passes over a row leave; the sums are over bins.
template <class V> struct Softmax {
    V largest;  // max t
    V total;    // Σ exp(t_b − max t), at least 1
    V moment;   // Σ exp(t_b − max t)·project_b
};

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

// Independent sums per quantity where the bins are unrolled: one long chain of additions would leave the units waiting for
// each other (and short chains round less).
template <int BINS> constexpr int chains = BINS > 0 ? 4 : 1;

template <int N, class V, class Combine> GFLV2_HD V combine(const V (&parts)[N], const Combine& of) {
    if constexpr (N == 4) return of(of(parts[0], parts[1]), of(parts[2], parts[3]));
    return parts[0];
}

template <int BINS, class V, class S, class Row, class Exponentials>
GFLV2_HD Softmax<V> softmax_moment(const Row& row, int bins, S scale, const S* projection, Exponentials& exponentials) {
    constexpr int N = chains<BINS>;
    // A factor of one sign keeps or turns the order, so the product is formed once, not for every bin.
    V largest, extreme[N];
    each<N>(N, [&](int c) { extreme[c] = row[c]; });
    if (scale >= S(0)) {
        each<BINS>(bins, [&](int b) { extreme[b % N] = maximum(V(row[b]), extreme[b % N]); });
        largest = scale * combine(extreme, [](V a, V b) { return maximum(a, b); });
    } else {
        each<BINS>(bins, [&](int b) { extreme[b % N] = minimum(V(row[b]), extreme[b % N]); });
        largest = scale * combine(extreme, [](V a, V b) { return minimum(a, b); });
    }
    V total[N] = {}, moment[N] = {};
    each<BINS>(bins, [&](int b) {
        const V e = exponential(multiply_add(V(row[b]), broadcast<V>(scale), V(-largest)));
        exponentials.keep(b, e);
        total[b % N] += e;
        moment[b % N] = multiply_add(e, broadcast<V>(projection[b]), moment[b % N]);
    });
    const auto add = [](V a, V b) { return a + b; };
    return {largest, combine(total, add), combine(moment, add)};
}

// Calls store(bin, ∂L/∂z_b) for every bin, and project(bin, ∂L/∂project_b) where PROJECTION; returns the row's part of
// ∂L/∂scale. `upstream` is ∂L/∂d.
template <int BINS, bool PROJECTION, class V, class S, class Row, class Exponentials, class Store, class Project>
GFLV2_HD V softmax_moment_backward(
    const Row& row, int bins, S scale, const S* projection, const Exponentials& exponentials, const Softmax<V>& softmax,
    V upstream, const Store& store, const Project& project) {
    const V inverse = broadcast<V>(S(1)) / softmax.total;
    const V distance = softmax.moment * inverse;
    const V factor = inverse * upstream;
    V scale_sum = V{};
    each<BINS>(bins, [&](int b) {
        const V weight = exponentials.get(row, b, scale, softmax.largest) * factor;
        const V slope = weight * (projection[b] - distance);
        scale_sum = multiply_add(V(row[b]), slope, scale_sum);
        store(b, V(slope * scale));
        if constexpr (PROJECTION) project(b, weight);
    });
    return scale_sum;
}

GFLV2_END
