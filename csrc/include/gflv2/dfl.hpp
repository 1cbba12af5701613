// The arithmetic of one row of the Distribution Focal Loss (arXiv 2006.04388, equation 6).
//
//   CE(z, ⌊d⌋)·(⌊d⌋ + 1 − d) + CE(z, ⌊d⌋ + 1)·(d − ⌊d⌋) = log Σ_b exp(t_b) − Σ_b hat_b·t_b,   t = z − max z
//   hat_b = max(0, 1 − |b − d|),   ∂/∂z_b = P_b − hat_b
//
// The hat makes every bin alike: no target, however wrong, chooses an address. V, S, Row and BINS as in gflv2/integral.hpp.
#pragma once

#include "gflv2/logarithm.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// The share of bin b in a target d that was clamped to the bins.
template <class S, class V> GFLV2_HD V hat(int bin, V target) {
    const V distance = target - S(bin);
    return maximum(V{}, V(S(1) - maximum(V(-distance), distance)));
}

template <class S, class V> GFLV2_HD V clamp_target(V target, int bins) {
    return minimum(broadcast<V>(S(bins - 1)), maximum(V{}, target));  // in this order a NaN is kept
}

template <class V> struct DflRow {
    V loss;
    V largest;  // max z
    V total;    // Σ exp(z_b − max z)
};

// keep(bin, exp(z_b − max z)) for every bin.
template <int BINS, class S, class V, class Row, class Keep> GFLV2_HD DflRow<V> dfl_row(const Row& row, int bins, V target, const Keep& keep) {
    V largest = row[0];
    each<BINS>(bins, [&](int b) { largest = maximum(V(row[b]), largest); });
    V total = V{}, chosen = V{};
    each<BINS>(bins, [&](int b) {
        const V t = row[b] - largest, e = exponential(t), share = hat<S>(b, target);
        keep(b, e);
        total += e;
        // Not a product alone: a logit of −∞ outside the two bins must not spoil the loss.
        chosen += share == S(0) ? V{} : V(share * t);
    });
    return {V(-minus_log(total, V(S(1) - total)) - chosen), largest, total};
}

// ∂(loss)/∂z_b · upstream, for the exponential that was kept.
template <class S, class V> GFLV2_HD V dfl_slope(int bin, V exponential, V over_total, V target, V upstream) {
    return upstream * (exponential * over_total - hat<S>(bin, target));
}

GFLV2_END
