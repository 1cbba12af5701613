// The arithmetic of one point of `decode`: its joint scores, and the key by which the points of a level are ranked
// (arXiv 2011.12885, equation 1).
//
//   J = σ(c)·σ(r),   key = max over the classes of J = J of the largest class logit: σ does not fall.
//
// A σ with rounding might fall by a unit in the last place somewhere. So that the largest score of a row is its key to
// the last bit on every processor, and rows in the order of their keys are in the order of their scores, no score
// exceeds the key.
//
// V is a number (a CUDA thread) or a vector of numbers, S its element type.
#pragma once

#include <cstdint>

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/storage.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

// 1/(1 + e^−x), with full relative precision down to e^−87, and 0 below.
template <class V> GFLV2_HD V sigmoid(V x) {
    const V below = minimum(x, V(-x));
    const V e = exponential_wide(maximum(broadcast<V>(-87.0f), below));  // a NaN stays one
    const V s = 1.0f / (1.0f + e);
    return x < 0.0f ? V(below < -87.0f ? V{} : V(e * s)) : s;
}

// The score that is returned: J where it is above the threshold, else 0. `key` is the row's, without its sign.
template <class V, class S> GFLV2_HD V kept_score(V class_logit, V quality, V key, S threshold) {
    const V joint = minimum(key, V(sigmoid(class_logit) * quality));  // in this order a NaN is kept
    return joint > threshold ? joint : V{};
}

// The stored key: J of the largest class logit that is a number; its sign bit says that some class's J is not a number.
// Such a point comes before all others, as it does in a sort by torch.
template <class V> GFLV2_HD V joint_key(V largest, V quality) {
    const V joint = sigmoid(largest) * quality;
    return joint == joint ? joint : V{} * -1.0f;
}

// Unsigned integers in the order of the keys. (None is a NaN.)
GFLV2_HD std::uint32_t rank_of(float key) {
    const std::uint32_t bits = as_bits(key);
    return bits < 0x7f800000u ? bits : 0x7f800000u;  // with the sign bit it is larger
}

#if !defined(__CUDA_ARCH__)
GFLV2_HD std::uint64_t rank_of(double key) {
    std::uint64_t bits;
    std::memcpy(&bits, &key, sizeof bits);
    return bits >> 63 ? 0x7ff0000000000000u : bits;
}
#endif

// Rows that a level gives to the result.
GFLV2_HD std::int64_t rows_of(const Level& level, std::int64_t topk) {
    const std::int64_t points = level.height * level.width;
    return points < topk ? points : topk;
}

// Coordinate of a box's side, clipped to [0, limit], then divided; a NaN stays one.
template <class S> GFLV2_HD S clipped(S coordinate, S limit) {
    const S at_least = coordinate < S(0) ? S(0) : coordinate;
    return at_least > limit ? limit : at_least;
}

GFLV2_END
