// The arithmetic of one point and one box of `task_aligned` (TOOD, arXiv 2108.07755): is the point inside, how much do
// its predicted box and the box overlap, what is the metric. Comparisons hang on every bit here, so nothing may be
// fused: -ffp-contract=off, -fmad=false; and the order of operations is that of the definition.
//
// V is a number (a CUDA thread) or a vector of numbers (one point or one box in each lane of a SIMD register).
#pragma once

#include <cmath>
#include <cstdint>

#include "gflv2/api/task_aligned.hpp"
#include "gflv2/lanes.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/powers.hpp"
#include "gflv2/storage.hpp"

GFLV2_BEGIN

constexpr float beyond_float = __builtin_huge_valf();
constexpr int largest_whole_power = 16;

// How many boxes of an image exist.
GFLV2_HD std::int64_t boxes_of(const TaskAlignedImage& image) {
    if (!image.limit) return image.count;
    const std::int64_t limit = *image.limit;
    return limit < 0 ? 0 : limit > image.count ? image.count : limit;
}

template <class V> struct TaskBox {
    V x1, y1, x2, y2;
};

GFLV2_HD TaskBox<float> task_box(const float* at) { return {at[0], at[1], at[2], at[3]}; }

// --- powers ---

// An exponent, looked at once.
struct Exponent {
    int whole;  // the number itself; −1: a half, −2: another one
    double value;
};

inline Exponent exponent_of(double value) {
    if (value == 0.5) return {-1, value};
    if (value < 0 || value > largest_whole_power || value != int(value)) return {-2, value};
    return {int(value), value};
}

// base^exponent for base ≥ 0: 0.5 a square root, whole numbers to 16 products, others in double.
template <class V> GFLV2_HD V power(V base, const Exponent& exponent) {
    if (exponent.whole == -1) return square_root(base);
    if (exponent.whole < 0) return double_power(base, exponent.value);
    V result = broadcast<V>(1.0f);
    GFLV2_UNROLL_NEVER
    for (int rest = exponent.whole; rest > 0; rest >>= 1) {
        if (rest & 1) result = result * base;
        base = base * base;
    }
    return result;
}

// --- overlap ---

// atan(x) within 3 units in the last place (S. Moshier's coefficients, Cephes).
template <class V> GFLV2_HD V arctangent(V x) {
    const V zero{}, one = broadcast<V>(1.0f);
    const V size = choose(x < zero, V(-x), x);
    const auto far = size > broadcast<V>(2.414213562373095f);
    const auto middle = size > broadcast<V>(0.4142135623730950f);
    const V top = choose(far, V(-one), choose(middle, V(size - one), size));
    const V below = choose(far, size, choose(middle, V(size + one), one));
    const V start =
        choose(far, broadcast<V>(1.57079632679489662f), choose(middle, broadcast<V>(0.78539816339744831f), zero));
    const V t = top / below, z = t * t;
    V series = z * 8.05374449538e-2f - 1.38776856032e-1f;
    series = series * z + 1.99777106478e-1f;
    series = series * z - 3.33329491539e-1f;
    const V angle = start + (series * z * t + t);
    return choose(x < zero, V(-angle), angle);
}

// The angle of a box's aspect ratio, for CIoU.
template <class V> GFLV2_HD V box_angle(const TaskBox<V>& box) {
    return arctangent(V((box.x2 - box.x1) / (box.y2 - box.y1 + 1e-7f)));
}

// In the order of the arguments 0 wins against a negative number.
template <class V> GFLV2_HD V common_area(const TaskBox<V>& a, const TaskBox<V>& b) {
    const V width = minimum(a.x2, b.x2) - maximum(a.x1, b.x1);
    const V height = minimum(a.y2, b.y2) - maximum(a.y1, b.y1);
    return maximum(V{}, width) * maximum(V{}, height);
}

template <class V> struct TaskOverlap {
    V value;           // 0 where the pair does not count, or where it is not positive
    mask_t<V> counts;  // nothing is a NaN, or beyond float
};

template <class V> GFLV2_HD TaskOverlap<V> counted_overlap(V value, V area) {
    const V limit = broadcast<V>(beyond_float);
    const mask_t<V> counts = (area < limit) & (area > -limit) & (value == value);
    return {choose(counts & (value > V{}), value, V{}), counts};
}

template <class V> GFLV2_HD TaskOverlap<V> box_iou(const TaskBox<V>& pred, const TaskBox<V>& box) {
    const V common = common_area(pred, box);
    const V area = (pred.x2 - pred.x1) * (pred.y2 - pred.y1) + (box.x2 - box.x1) * (box.y2 - box.y1) - common;
    return counted_overlap(V(common / maximum(broadcast<V>(1e-6f), area)), area);
}

// Complete IoU (arXiv 1911.08287). `angle`: box_angle(box).
template <class V> GFLV2_HD TaskOverlap<V> box_ciou(const TaskBox<V>& pred, const TaskBox<V>& box, V angle) {
    const float eps = 1e-7f;
    const V common = common_area(pred, box);
    const V area =
        (box.x2 - box.x1) * (box.y2 - box.y1 + eps) + (pred.x2 - pred.x1) * (pred.y2 - pred.y1 + eps) - common + eps;
    const V iou = common / area;
    const V width = maximum(pred.x2, box.x2) - minimum(pred.x1, box.x1);
    const V height = maximum(pred.y2, box.y2) - minimum(pred.y1, box.y1);
    const V diagonal = width * width + height * height + eps;
    const V dx = pred.x1 + pred.x2 - box.x1 - box.x2, dy = pred.y1 + pred.y2 - box.y1 - box.y2;
    const V distance = (dx * dx + dy * dy) * 0.25f;
    const V turn = box_angle(pred) - angle;
    const V v = (turn * turn) * 0.405284734569351086f;  // 4/π²
    const V weight = v / (1.0f - iou + v + eps);
    return counted_overlap(V(iou - (distance / diagonal + v * weight)), area);
}

template <class V>
GFLV2_HD TaskOverlap<V> task_overlap(bool ciou, const TaskBox<V>& pred, const TaskBox<V>& box, V angle) {
    return ciou ? box_ciou(pred, box, angle) : box_iou(pred, box);
}

// --- metric ---

template <class V> struct TaskMetric {
    V value;
    mask_t<V> counts;
};

template <class V>
GFLV2_HD TaskMetric<V> task_metric(const Exponent& alpha, const Exponent& beta, V score, const TaskOverlap<V>& shared) {
    const V limit = broadcast<V>(beyond_float);
    const V value = power(score, alpha) * power(shared.value, beta);
    const mask_t<V> counts = shared.counts & (score >= V{}) & (score < limit) & (value < limit);
    return {choose(counts & (value > V{}), value, V{}), counts};
}

// --- inside ---

// What points must lie in: the box, or what it becomes where its sides are at least `min_side`.
template <class V> GFLV2_HD TaskBox<V> task_limits(const TaskBox<V>& box, float min_side) {
    if (min_side < 0) return box;
    const V x = (box.x1 + box.x2) * 0.5f, y = (box.y1 + box.y2) * 0.5f, least = broadcast<V>(min_side);
    const V width = box.x2 - box.x1, height = box.y2 - box.y1;
    const V half_width = choose(width < least, least, width) * 0.5f;
    const V half_height = choose(height < least, least, height) * 0.5f;
    return {x - half_width, y - half_height, x + half_width, y + half_height};
}

template <class V> GFLV2_HD mask_t<V> is_inside(V x, V y, const TaskBox<V>& limits, float margin) {
    const V least = broadcast<V>(margin);
    return (V(x - limits.x1) > least) & (V(y - limits.y1) > least) & (V(limits.x2 - x) > least) &
           (V(limits.y2 - y) > least);
}

// --- keys ---

// A metric (or an overlap) ≥ 0 above, an inverted name below: of two keys the larger is the higher metric, then the
// lower name. No key is negative.
GFLV2_HD long long task_key(float value, std::int64_t name) {
    return (long long)(as_bits(value)) << 32 | (0x7fffffff - name);
}
GFLV2_HD std::int64_t name_of_key(long long key) { return 0x7fffffff - (key & 0x7fffffff); }
GFLV2_HD float value_of_key(long long key) { return as_float(std::uint32_t(key >> 32)); }

// A point's score for a class, wherever it lies.
GFLV2_HD float score_at(const TaskAlignedArguments& a, std::int64_t offset) {
    switch (a.dtype) {
        case Dtype::float16: return widen(static_cast<const half*>(a.scores)[offset]);
        case Dtype::bfloat16: return widen(static_cast<const bfloat16*>(a.scores)[offset]);
        case Dtype::float64: return float(static_cast<const double*>(a.scores)[offset]);
        default: return static_cast<const float*>(a.scores)[offset];
    }
}

GFLV2_END
