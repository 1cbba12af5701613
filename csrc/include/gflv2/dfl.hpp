// The arithmetic of one row of the Distribution Focal Loss (arXiv 2006.04388, equation 6).
//
//   CE(z, l)·(l + 1 − d) + CE(z, l + 1)·(d − l) = log Σ_b exp(t_b) − Σ_b share_b·t_b,   l = ⌊d⌋, t = z − max z
//   ∂/∂z_b = P_b − share_b
//
// Every bin is compared with the two: a target, however wrong, never becomes an address. V, S, Row and BINS as in
// gflv2/integral.hpp.
#pragma once

#include "gflv2/logarithm.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/softmax.hpp"

GFLV2_BEGIN

template <class V> struct DflTarget {
    V left;          // ⌊d⌋, at most R − 2
    V below, above;  // the shares of the bins left and left + 1
};

// Of a distance, which is clamped to the bins first; a NaN stays one.
template <class S, class V> GFLV2_HD DflTarget<V> dfl_target(V distance, int bins) {
    const V d = minimum(broadcast<V>(S(bins - 1)), maximum(V{}, distance));
    const V left = minimum(broadcast<V>(S(bins - 2)), whole_part(d)), above = d - left;
    return {left, S(1) - above, above};
}

template <class V> struct DflRow {
    V total;   // Σ exp(t_b)
    V chosen;  // Σ share_b·t_b
};

// keep(bin, exp(z_b − max z)) for every bin; the row may be overwritten by it.
template <int BINS, class S, class V, class Row, class Keep>
GFLV2_HD DflRow<V> dfl_row(const Row& row, int bins, const DflTarget<V>& target, const Keep& keep) {
    const V largest = scaled_largest<BINS, V>(row, bins, S(1));
    V totals[chains] = {}, low = V{}, high = V{};
    each_chained<BINS>(bins, [&](int b, int chain) {
        const V t = row[b] - largest, e = exponential(t);
        keep(b, e);
        totals[chain] += e;
        low = target.left == S(b) ? t : low;
        high = target.left == S(b - 1) ? t : high;
    });
    // No comparison above holds for a target that is NaN; so it spoils the sum, and with it loss and gradients.
    const V total = combine(totals, [](V a, V b) { return a + b; }) + (target.above - target.above);
    // Not products alone: a logit of −∞ in a bin without a share must not spoil the loss.
    const V chosen =
        (target.below == S(0) ? V{} : V(target.below * low)) + (target.above == S(0) ? V{} : V(target.above * high));
    return {total, chosen};
}

// total − total: the logarithm of a NaN need not be one.
template <class S, class V> GFLV2_HD V dfl_loss(V total, V chosen) {
    return -minus_log(total, V(S(1) - total)) - chosen + (total - total);
}

// ∂(loss)/∂z_b · upstream, for the exponential that was kept.
template <class S, class V>
GFLV2_HD V dfl_gradient(int bin, V exponential, V over_total, const DflTarget<V>& target, V upstream) {
    const V share = target.left == S(bin) ? V(-target.below) : target.left == S(bin - 1) ? V(-target.above) : V{};
    return upstream * multiply_add(exponential, over_total, share);
}

GFLV2_END
