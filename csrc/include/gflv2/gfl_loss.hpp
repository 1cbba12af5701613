// The arithmetic of the two box losses of one point, and their way back to one row of box logits (arXiv 2006.04388).
// Lengths are in units of the stride, targets of DFL in bins.
//
//   d_side = Σ_b P_b·project_b,   box = cell ∓ d
//   L = f_giou·w·(1 − GIoU(box, target)) + f_dfl·w·Σ_sides (log Σ_b exp(t_b) − Σ_b hat_b·t_b)
//   ∂L/∂t_b = P_b·(u·(project_b − d) + v) − v·hat_b,   u = f_giou·w·∂(1 − GIoU)/∂d,   v = f_dfl·w
//
// V is a number or a vector of numbers, S its element type; Row and BINS as in gflv2/integral.hpp.
#pragma once

#include "gflv2/giou.hpp"
#include "gflv2/logarithm.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/points.hpp"
#include "gflv2/softmax.hpp"

GFLV2_BEGIN

// Targets of DFL end this far before the last bin.
template <class S> constexpr S last_bin_margin = S(0.1);

// The share of bin b in a target of DFL: max(0, 1 − |b − target|). One number instead of dfl.hpp's three, since targets
// travel from forward to backward.
template <class S, class V> GFLV2_HD V hat(int bin, V target) {
    const V distance = target - S(bin);
    return larger(V{}, V(S(1) - larger(V(-distance), distance)));
}

// What DFL should give for a side of the target box; `first` and `step` are the projection's.
template <class S, class V> GFLV2_HD V target_bin(V cell, V corner, int side, S first, S step, int bins) {
    const V distance = side < 2 ? V(cell - corner) : V(corner - cell);
    // In this order of arguments a NaN is kept.
    return minimum(broadcast<V>(S(bins - 1) - last_bin_margin<S>), maximum(V{}, V((distance - first) / step)));
}

template <class V> struct BoxSide {
    V distance;
    V dfl;  // the loss of this side
};

// One side's distance, and its DFL for a target in bins.
template <int BINS, class V, class S, class Row>
GFLV2_HD BoxSide<V> read_box_side(const Row& row, int bins, S scale, const S* projection, V target) {
    const V largest = scaled_largest<BINS, V>(row, bins, scale);
    V total[chains] = {}, moment[chains] = {}, chosen = V{};
    each_chained<BINS>(bins, [&](int b, int chain) {
        const V t = multiply_add(V(row[b]), broadcast<V>(scale), V(-largest)), e = exponential(t),
                share = hat<S>(b, target);
        total[chain] += e;
        moment[chain] = multiply_add(e, broadcast<V>(projection[b]), moment[chain]);
        // Not a product alone: a logit of −∞ outside the two bins must not spoil the loss.
        chosen += share == S(0) ? V{} : V(share * t);
    });
    const auto add = [](V a, V b) { return a + b; };
    const V sum = combine(total, add);
    return {quotient(V(combine(moment, add)), sum), V(-minus_log(sum, V(S(1) - sum)) - chosen)};
}

// Loss 1 − GIoU of the box that the distances mean; gradient: weight · its derivative for each distance.
template <class S, class V>
GFLV2_HD V box_loss_of(const V* cell, const V* distance, const V* target, V weight, V* gradient) {
    V box[4], corners[4];
    box_of_distances(cell, distance, box);
    const BoxPair<V> pair = box_pair<S>(box, target, smallest_area<S>);
    giou_gradients<true, false>(pair, box, target, smallest_area<S>, weight, corners, corners);
    each<4>(4, [&](int side) { gradient[side] = side < 2 ? V(-corners[side]) : corners[side]; });
    return giou_value<true, S>(pair);
}

// The box losses' part in ∂L/∂t_b of one row.
template <class V> struct BoxRowGradient {
    V of_distance;  // u
    V of_dfl;       // v
    V target;       // of DFL, in bins
    V distance;     // d

    template <class S> GFLV2_HD V at(int bin, V probability, S projection) const {
        return probability * (of_distance * (projection - distance) + of_dfl) - of_dfl * hat<S>(bin, target);
    }
};

GFLV2_END
