// The arithmetic of one pair of a point and a box in `dynamic_soft_label`, and of one class of a point. Comparisons hang
// on every bit here, so nothing is fused, not even in a polynomial, and logarithm and powers are those below: with them
// every backend gives the same costs. (-ffp-contract=off, -fmad=false.)
//
// V is a number (a CUDA thread) or a vector of numbers (several points of one box, or several boxes of one point).
#pragma once

#include <cstdint>

#include "gflv2/api/dynamic_soft_label.hpp"
#include "gflv2/lanes.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

constexpr bool takes_probabilities(SoftLabelCost cost) { return cost >= SoftLabelCost::simota; }
// Added for a point outside its box or its box's centre; 0: such a point costs no more than another.
constexpr float outside_penalty(SoftLabelCost cost) {
    return cost == SoftLabelCost::simota ? 1e5f : cost == SoftLabelCost::align_ota ? 1e8f : 0.0f;
}
constexpr float least_log_probability = -100.0f;  // as in torch's binary cross-entropy
constexpr float iou_epsilon = 1e-7f;              // beside an IoU under the logarithm

// How many boxes of an image exist.
GFLV2_HD std::int64_t boxes_of(const SoftLabelImage& image) {
    if (!image.limit) return image.count;
    const std::int64_t limit = *image.limit;
    return limit < 0 ? 0 : limit > image.count ? image.count : limit;
}

// A float as an integer of the same order; no NaN.
GFLV2_HD std::int32_t ordered(float value) {
    const std::int32_t bits = bits_of(value);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

// --- elementary functions, not fused ---

// The whole number next to |x| < 2^22, ties to even.
template <class V> GFLV2_HD V nearest_whole(V x) { return (x + 12582912.0f) - 12582912.0f; }

// 2^(f + n) for |f| ≤ ½ and a whole n from −125 to 128: the polynomial of degree 6 with constant term 1 that minimises
// the largest relative error (4e-9).
template <class V> GFLV2_HD V power_of_two(V f, V n) {
    V p = f * 1.519680955e-4f + 1.339131733e-3f;
    p = p * f + 9.619002230e-3f;
    p = p * f + 5.550358817e-2f;
    p = p * f + 2.402264327e-1f;
    p = p * f + 6.931471825e-1f;
    p = p * f + 1.0f;
    return (p + p) * value_of((truncated(n) + 126) << 23);
}

// e^x for x ≤ 0; below −86: e^−86.
template <class V> GFLV2_HD V power_of_e(V x) {
    x = maximum(broadcast<V>(-86.0f), x);  // in this order a NaN is kept
    const V n = nearest_whole(V(x * 1.44269504f));
    // ln 2 in two parts: n times the first, of 15 bits, is exact.
    const V r = (x - n * 6.93145751953125e-1f) - n * 1.42860682e-6f;
    return power_of_two(V(r * 1.44269504f), n);
}

// 10^x; below −37.5: 10^−37.5; infinite where it would not be a float.
template <class V> GFLV2_HD V power_of_ten(V x) {
    const V within = minimum(broadcast<V>(38.53f), maximum(broadcast<V>(-37.5f), x));
    const V n = nearest_whole(V(within * 3.32192809f));
    const V r = (within - n * 0.301025390625f) - n * 4.60503898e-6f;
    const V power = power_of_two(V(r * 3.32192809f), n);
    return choose(x > 38.5318f, broadcast<V>(__builtin_huge_valf()), power);
}

// log(value) for a normal positive number, as minus_log of logarithm.hpp. `less` is value − 1 and serves where value lies
// near 1: its relative error is that of the result there.
template <class V> GFLV2_HD V natural_log(V value, V less) {
    constexpr std::int32_t half_root = 0x3f3504f3;  // √½
    const integers_t<V> above = bits_of(value) - half_root;
    const integers_t<V> n = above >> 23;  // value = 2^n·m with √½ ≤ m < √2
    const V m = value_of((above & 0x7fffff) + half_root);
    const V f = choose(n == 0, less, V(m - 1.0f));
    V p = f * 8.734750748e-2f - 1.430748254e-1f;
    p = p * f + 1.491798908e-1f;
    p = p * f - 1.657051444e-1f;
    p = p * f + 1.996207088e-1f;
    p = p * f - 2.500175536e-1f;
    p = p * f + 3.333395123e-1f;
    p = p * f - 4.999999106e-1f;
    return number(n) * 6.931471806e-1f + ((f * f) * p + f);
}

// max(log(value), −100) for 0 ≤ value ≤ 1, also where value is subnormal.
template <class V> GFLV2_HD V limited_log(V value, V less) {
    const V scaled = value * 16777216.0f;  // 2^24
    const V small = natural_log(scaled, V(scaled - 1.0f)) - 16.63553233f;
    const V log = choose(value < 1.17549435e-38f, small, natural_log(value, less));
    return choose(value > 0.0f, maximum(broadcast<V>(least_log_probability), log), broadcast<V>(least_log_probability));
}

// --- the class cost ---

// The term of one class for target 0 and for target y.
template <SoftLabelCost COST, class V> struct ClassTerm;

// BCE(σ(x), y)·(y − σ(x))²
template <class V> struct LogitTerm {
    V x, score, rest;  // rest: log σ(x)

    GFLV2_HD explicit LogitTerm(V value) : x(value) {
        const V e = power_of_e(V(minimum(value, V(-value))));
        const V one = broadcast<V>(1.0f), whole = one + e, inverse = one / whole;
        score = choose(value > 0.0f, inverse, V(e * inverse));
        rest = minimum(value, V{}) - natural_log(whole, e);
    }
    GFLV2_HD V background() const { return (x - rest) * (score * score); }
    GFLV2_HD V foreground(V y) const {
        const V difference = y - score;
        return ((1.0f - y) * x - rest) * (difference * difference);
    }
};
template <class V> struct ClassTerm<SoftLabelCost::rtmdet, V> : LogitTerm<V> {
    using LogitTerm<V>::LogitTerm;
};
template <class V> struct ClassTerm<SoftLabelCost::nanodet, V> : LogitTerm<V> {
    using LogitTerm<V>::LogitTerm;
};

// BCE(x, y)·(y − x)²
template <class V> struct ClassTerm<SoftLabelCost::align_ota, V> {
    V x;
    GFLV2_HD explicit ClassTerm(V value) : x(value) {}
    GFLV2_HD V background() const { return -limited_log(V(1.0f - x), V(-x)) * (x * x); }
    GFLV2_HD V foreground(V y) const {
        const V negative = limited_log(V(1.0f - x), V(-x)), positive = limited_log(x, V(x - 1.0f)), difference = y - x;
        return ((y - 1.0f) * negative - y * positive) * (difference * difference);
    }
};

// BCE(x, 1 at the label)
template <class V> struct ClassTerm<SoftLabelCost::simota, V> {
    V x;
    GFLV2_HD explicit ClassTerm(V value) : x(value) {}
    GFLV2_HD V background() const { return -limited_log(V(1.0f - x), V(-x)); }
    GFLV2_HD V foreground(V) const { return -limited_log(x, V(x - 1.0f)); }
};

// May a point with this class value be positive?
template <SoftLabelCost COST, class V> GFLV2_HD mask_t<V> usable_value(V x) {
    if constexpr (takes_probabilities(COST)) return (x >= 0.0f) & (x <= 1.0f);
    return x - x == V{};
}

// base: sum over all classes of their background terms, in double; x: value of the box's class. What the sum keeps of
// the other classes is exact to float's precision, whatever the label's own term was.
template <SoftLabelCost COST, class V, class Wide> GFLV2_HD V class_cost(Wide base, V x, V iou) {
    const ClassTerm<COST, V> term(x);
    const V sum = narrowed((base - widened(term.background())) + widened(term.foreground(iou)));
    return maximum(V{}, sum);
}

// --- boxes ---

template <class V> struct PlainBox {
    V x1, y1, x2, y2;
    GFLV2_HD V area() const { return (x2 - x1) * (y2 - y1); }
    GFLV2_HD mask_t<V> finite() const {
        return (x1 - x1 == V{}) & (y1 - y1 == V{}) & (x2 - x2 == V{}) & (y2 - y2 == V{});
    }
    GFLV2_HD V centre_x() const { return (x1 + x2) * 0.5f; }
    GFLV2_HD V centre_y() const { return (y1 + y2) * 0.5f; }
};

template <class V> GFLV2_HD V intersection(const PlainBox<V>& a, const PlainBox<V>& b) {
    const V width = minimum(a.x2, b.x2) - maximum(a.x1, b.x1), height = minimum(a.y2, b.y2) - maximum(a.y1, b.y1);
    return maximum(V{}, width) * maximum(V{}, height);
}

// first: of the predicted box; areas are given, for a box meets many.
template <class V> GFLV2_HD V iou_of(V common, V first, V second) {
    return common / maximum(broadcast<V>(1e-6f), V((first + second) - common));
}

template <class V> GFLV2_HD V iou_cost(V iou, float weight) {
    const V value = iou + iou_epsilon;
    return -natural_log(value, V(value - 1.0f)) * weight;
}

// --- points ---

template <class V> GFLV2_HD mask_t<V> is_inside(V x, V y, const PlainBox<V>& box) {
    return (x - box.x1 > 0.0f) & (y - box.y1 > 0.0f) & (box.x2 - x > 0.0f) & (box.y2 - y > 0.0f);
}

// Less than `reach` from the centre on both axes.
template <class V> GFLV2_HD mask_t<V> is_central(V x, V y, V centre_x, V centre_y, V reach) {
    return (x - (centre_x - reach) > 0.0f) & (y - (centre_y - reach) > 0.0f) & ((centre_x + reach) - x > 0.0f) &
           ((centre_y + reach) - y > 0.0f);
}

// Does this box make the point a candidate of its image?
template <SoftLabelCost COST, class V>
GFLV2_HD mask_t<V> makes_candidate(V x, V y, V stride, const PlainBox<V>& box, float radius) {
    if constexpr (outside_penalty(COST) > 0)
        return is_inside(x, y, box) | is_central(x, y, box.centre_x(), box.centre_y(), V(stride * radius));
    return is_inside(x, y, box);
}

template <SoftLabelCost COST, class V>
GFLV2_HD V centre_term(V x, V y, V stride, const PlainBox<V>& box, float radius) {
    const V centre_x = box.centre_x(), centre_y = box.centre_y();
    if constexpr (outside_penalty(COST) > 0) {
        const auto free = is_inside(x, y, box) & is_central(x, y, centre_x, centre_y, V(stride * radius));
        return choose(free, V{}, broadcast<V>(outside_penalty(COST)));
    } else if constexpr (COST == SoftLabelCost::rtmdet) {
        const V dx = x - centre_x, dy = y - centre_y;
        return power_of_ten(V(root(V(dx * dx + dy * dy)) / stride - radius));
    } else {
        return V{};
    }
}

// The whole cost; without its first term it is a lower bound, to the last bit: sums round in order.
template <class V> GFLV2_HD V cost_of(V class_cost, float class_weight, V iou_cost, V centre) {
    return (class_cost * class_weight + iou_cost) + centre;
}

GFLV2_END
