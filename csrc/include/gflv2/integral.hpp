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
#include "gflv2/softmax.hpp"

GFLV2_BEGIN

// What the first two passes over a row leave; the sums are over bins.
template <class V> struct Softmax {
    V largest;  // max t; on a GPU max t·log2 e
    V total;    // Σ exp(t_b − max t)
    V moment;   // Σ exp(t_b − max t)·project_b
};

template <int BINS, class V, class S, class Row, class Exponentials>
GFLV2_HD Softmax<V> softmax_moment(const Row& row, int bins, S scale, const S* projection, Exponentials& exponentials) {
    const V largest = largest_exponent(leading_logit<BINS, V>(row, bins, scale), scale);
    const S steep = exponent_scale(scale, largest);
    V total[chains] = {}, moment[chains] = {};
    each_chained<BINS>(bins, [&](int b, int chain) {
        const V e = softmax_term(V(row[b]), steep, largest);
        exponentials.keep(b, e);
        total[chain] += e;
        moment[chain] = multiply_add(e, broadcast<V>(projection[b]), moment[chain]);
    });
    const auto add = [](V a, V b) { return a + b; };
    return {largest, combine(total, add), combine(moment, add)};
}

// d alone.
template <int BINS, class V, class S, class Row>
GFLV2_HD V distance_of(const Row& row, int bins, S scale, const S* projection) {
    NoExponentials none;
    const Softmax<V> softmax = softmax_moment<BINS, V>(row, bins, scale, projection, none);
    return quotient(softmax.moment, softmax.total);
}

// Calls store(bin, ∂L/∂z_b) for every bin, and project(bin, ∂L/∂project_b) where PROJECTION; returns the row's part of
// ∂L/∂scale. `upstream` is ∂L/∂d.
template <int BINS, bool PROJECTION, class V, class S, class Row, class Exponentials, class Store, class Project>
GFLV2_HD V softmax_moment_backward(const Row& row, int bins, S scale, const S* projection,
                                   const Exponentials& exponentials, const Softmax<V>& softmax, V upstream,
                                   const Store& store, const Project& project) {
    const V inverse = quotient(broadcast<V>(S(1)), softmax.total);
    const V distance = softmax.moment * inverse;
    const V factor = inverse * upstream;
    V scale_sum[chains] = {};
    each_chained<BINS>(bins, [&](int b, int chain) {
        const V weight = exponentials.get(row, b, scale, softmax.largest) * factor;
        const V gradient = weight * (projection[b] - distance);
        scale_sum[chain] = multiply_add(V(row[b]), gradient, scale_sum[chain]);
        store(b, V(gradient * scale));
        if constexpr (PROJECTION) project(b, weight);
    });
    return combine(scale_sum, [](V a, V b) { return a + b; });
}

GFLV2_END
