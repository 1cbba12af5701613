// The loss 1 − CIoU of one pair of aligned boxes, and its derivatives (arXiv 2005.03572).
//
//   CIoU = I/U − ρ²/c² − α·v,   v = 4/π²·(atan(w'/h') − atan(w/h))²,   α = v/(1 − I/U + v), a constant
//
// with the distance ρ of the centres, the diagonal c of the enclosing box, and the sides w, h and w', h' of pred and
// target. Of the two conventions (gflv2/api/giou.hpp), Ultralytics': eps is added to both heights, also in the areas, and
// to U, c² and α's divisor. MMDET: not to the areas' heights nor to α's divisor; α is 0 where IoU ≤ 1/2; CIoU ≥ −1.
//
// V is a number or a vector of numbers, S its element type. Corners: x1, y1, x2, y2.
#pragma once

#include "gflv2/arctangent.hpp"
#include "gflv2/giou.hpp"

GFLV2_BEGIN

// What a pair's value and derivatives are made of, beside its BoxPair.
template <class V> struct CiouPair {
    V iou, over_union;                      // I/U, 1/U
    V between[2], distance, over_diagonal;  // twice the way from pred's centre to target's; ρ², 1/c²
    V height, target_height;                // h, h' with their eps
    V turn, shape, share;                   // the difference of the angles; v, α
    V value;                                // CIoU, before MMDET's limit
};

template <bool MMDET, class S, class V>
GFLV2_HD CiouPair<V> ciou_pair(const BoxPair<V>& p, const V* pred, const V* target, S eps) {
    CiouPair<V> c;
    V union_area = p.raw_union + eps;
    if constexpr (!MMDET) union_area += eps * (p.size[0] + p.target_size[0]);
    c.over_union = S(1) / union_area;
    c.iou = p.common / union_area;

    // The differences of corners of boxes that lie near each other are exact.
    each<2>(2, [&](int axis) { c.between[axis] = (target[axis] - pred[axis]) + (target[axis + 2] - pred[axis + 2]); });
    c.distance = S(0.25) * (c.between[0] * c.between[0] + c.between[1] * c.between[1]);
    c.over_diagonal =
        S(1) / (p.enclosing_side[0] * p.enclosing_side[0] + p.enclosing_side[1] * p.enclosing_side[1] + eps);

    c.height = p.size[1] + eps;
    c.target_height = p.target_size[1] + eps;
    const V a = p.target_size[0] / c.target_height, b = p.size[0] / c.height;
    c.turn = angle(V(a - b), V(S(1) + a * b));  // atan a − atan b
    c.shape = S(0.405284734569351) * c.turn * c.turn;
    if constexpr (MMDET) {
        const V share = c.shape / (S(1) - c.iou + c.shape);
        // Of equal shapes it is 0 (0/0 where the boxes are one).
        c.share = c.iou > S(0.5) ? (c.shape > S(0) ? share : V{}) : V{};
    } else {
        c.share = c.shape / (S(1) - c.iou + c.shape + eps);
    }
    c.value = c.iou - (c.distance * c.over_diagonal + c.shape * c.share);
    return c;
}

template <bool MMDET, class S, class V> GFLV2_HD V ciou_loss(const CiouPair<V>& c) {
    if constexpr (MMDET) return S(1) - maximum(broadcast<V>(S(-1)), c.value);
    return S(1) - c.value;
}

// grad: ∂L/∂(corner) of pred and of target; upstream: ∂L/∂(1 − CIoU).
template <bool MMDET, class S, class V>
GFLV2_HD void ciou_gradients(const BoxPair<V>& p, const CiouPair<V>& c, const V* pred, const V* target, V upstream,
                             V* grad_pred, V* grad_target) {
    const V zero = V{};
    if constexpr (MMDET) upstream = c.value < S(-1) ? zero : upstream;
    const V of_union = upstream * p.common * c.over_union * c.over_union;
    const V of_common = -(upstream * c.over_union) - of_union;  // the union shrinks by the intersection
    const V of_distance = upstream * c.over_diagonal;
    const V of_diagonal = -of_distance * c.distance * c.over_diagonal;
    const V of_turn = S(0.810569469138702) * upstream * c.share * c.turn;

    // 1. ∂L/∂(width, height), by the area and by the shape.
    const V* const size = p.size;
    const V* const target_size = p.target_size;
    const V turned = of_turn / (size[0] * size[0] + c.height * c.height);
    const V target_turned = of_turn / (target_size[0] * target_size[0] + c.target_height * c.target_height);
    const V side = MMDET ? size[1] : c.height, target_side = MMDET ? target_size[1] : c.target_height;
    const V of_size[2] = {of_union * side - turned * c.height, of_union * size[0] + turned * size[0]};
    const V of_target_size[2] = {of_union * target_side + target_turned * c.target_height,
                                 of_union * target_size[0] - target_turned * target_size[0]};

    // 2. To the corners.
    each<2>(2, [&](int axis) {
        // A side of the intersection that is 0 has derivative 0.
        const V common = p.common_side[axis] > S(0) ? V(of_common * p.common_side[1 - axis]) : zero;
        const V enclosing = S(2) * of_diagonal * p.enclosing_side[axis];
        corner_gradients<true, S>(axis, pred, target, common, enclosing, of_size[axis], of_target_size[axis], grad_pred,
                                  grad_target);
        const V moved = S(0.5) * of_distance * c.between[axis];
        each<2>(2, [&](int end) {
            grad_pred[axis + 2 * end] -= moved;
            grad_target[axis + 2 * end] += moved;
        });
    });
}

GFLV2_END
