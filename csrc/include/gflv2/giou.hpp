// IoU and GIoU of one pair of aligned boxes, and their derivatives (arXiv 1902.09630).
//
//   IoU = I/U,   GIoU = I/U − (E − U)/E,   U = max(area + area' − I, eps),   E = max(enclosing, eps)
//
// V is a number or a vector of numbers, S its element type. Corners: x1, y1, x2, y2.
#pragma once

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// The eps of the training head, whose boxes are in units of the stride: the definition's.
template <class S> constexpr S smallest_area = S(1e-6);

// What a pair's value and derivatives are made of.
template <class V> struct BoxPair {
    V common_side[2], common;        // width and height of the intersection (0 where there is none), and its area I
    V enclosing_side[2], enclosing;  // the same of the enclosing box; E
    V size[2], target_size[2];       // widths and heights of the two boxes
    V union_area;                    // U
    V raw_union, raw_enclosing;      // before the floor
};

// max(0, x), and a NaN stays one.
template <class V> GFLV2_HD V positive_part(V x) { return maximum(V{}, x); }

template <class S, class V> GFLV2_HD BoxPair<V> box_pair(const V* pred, const V* target, S eps) {
    BoxPair<V> p;
    each<2>(2, [&](int axis) {
        const V low = maximum(pred[axis], target[axis]), high = minimum(pred[axis + 2], target[axis + 2]);
        p.common_side[axis] = positive_part(V(high - low));
        const V first = minimum(pred[axis], target[axis]), last = maximum(pred[axis + 2], target[axis + 2]);
        p.enclosing_side[axis] = positive_part(V(last - first));
        p.size[axis] = pred[axis + 2] - pred[axis];
        p.target_size[axis] = target[axis + 2] - target[axis];
    });
    p.common = p.common_side[0] * p.common_side[1];
    p.raw_union = p.size[0] * p.size[1] + p.target_size[0] * p.target_size[1] - p.common;
    p.raw_enclosing = p.enclosing_side[0] * p.enclosing_side[1];
    p.union_area = maximum(broadcast<V>(eps), p.raw_union);
    p.enclosing = maximum(broadcast<V>(eps), p.raw_enclosing);
    return p;
}

// LOSS: 1 − GIoU, else the IoU.
template <bool LOSS, class S, class V> GFLV2_HD V giou_value(const BoxPair<V>& p) {
    const V iou = p.common / p.union_area;
    if constexpr (LOSS) return S(1) - (iou - (p.enclosing - p.union_area) / p.enclosing);
    return iou;
}

// ∂max(a, b)/∂a: 1 where a > b, a half where they are equal.
template <class S, class V> GFLV2_HD V share_of_larger(V a, V b) {
    return a > b ? broadcast<V>(S(1)) : a == b ? broadcast<V>(S(0.5)) : V{};
}

// Along one axis, from ∂L/∂ of the widths of the intersection, the enclosing box and the two boxes to the corners of pred,
// and of target where TARGET.
template <bool TARGET, class S, class V>
GFLV2_HD void corner_gradients(int axis, const V* pred, const V* target, V common, V enclosing, V size, V target_size,
                               V* grad_pred, V* grad_target) {
    const V low = share_of_larger<S>(pred[axis], target[axis]),
            high = share_of_larger<S>(target[axis + 2], pred[axis + 2]);
    grad_pred[axis] = -(low * common) - size - (S(1) - low) * enclosing;
    grad_pred[axis + 2] = high * common + size + (S(1) - high) * enclosing;
    if constexpr (TARGET) {
        grad_target[axis] = -((S(1) - low) * common) - target_size - low * enclosing;
        grad_target[axis + 2] = (S(1) - high) * common + target_size + high * enclosing;
    }
}

// grad: ∂L/∂(corner) of pred, and of target where TARGET; upstream: ∂L/∂(value).
template <bool LOSS, bool TARGET, class S, class V>
GFLV2_HD void giou_gradients(const BoxPair<V>& p, const V* pred, const V* target, S eps, V upstream, V* grad_pred,
                             V* grad_target) {
    const V zero = V{}, floor = broadcast<V>(eps), over_union = S(1) / p.union_area;
    V of_union = -p.common * over_union * over_union, of_common = over_union, of_enclosing = zero;
    if constexpr (LOSS) {
        const V over_enclosing = S(1) / p.enclosing;
        of_union += over_enclosing;
        of_enclosing = -p.union_area * over_enclosing * over_enclosing;
        of_enclosing *= share_of_larger<S>(p.raw_enclosing, floor);
        upstream = -upstream;
    }
    of_union *= share_of_larger<S>(p.raw_union, floor);
    of_common -= of_union;  // the union shrinks by the intersection
    of_union *= upstream;
    of_common *= upstream;
    of_enclosing *= upstream;
    each<2>(2, [&](int axis) {
        // A side of the intersection or of the enclosing box that is 0 has derivative 0.
        const V common = p.common_side[axis] > S(0) ? V(of_common * p.common_side[1 - axis]) : zero;
        const V enclosing = p.enclosing_side[axis] > S(0) ? V(of_enclosing * p.enclosing_side[1 - axis]) : zero;
        const V area = of_union * p.size[1 - axis], target_area = of_union * p.target_size[1 - axis];
        corner_gradients<TARGET, S>(axis, pred, target, common, enclosing, area, target_area, grad_pred, grad_target);
    });
}

GFLV2_END
