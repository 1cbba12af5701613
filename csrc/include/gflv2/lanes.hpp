// What an algorithm with branches and integers needs so that one template serves a number (a CUDA thread) and a vector
// of numbers (csrc/cpu/lanes.hpp): the integers of the same size, the result of a comparison, and the step to double.
#pragma once

#include <cmath>
#include <cstdint>

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/storage.hpp"

GFLV2_BEGIN

template <class V> struct Lanes;
template <> struct Lanes<float> {
    using integers = std::int32_t;
    using mask = bool;
    static constexpr bool one = true;
};
template <class V> using integers_t = typename Lanes<V>::integers;
template <class V> using mask_t = typename Lanes<V>::mask;

GFLV2_HD bool any(bool mask) { return mask; }
template <class T> GFLV2_HD T choose(bool condition, T yes, T no) { return condition ? yes : no; }
GFLV2_HD std::int32_t truncated(float value) { return std::int32_t(value); }
GFLV2_HD float number(std::int32_t value) { return float(value); }
GFLV2_HD std::int32_t bits_of(float value) { return std::int32_t(as_bits(value)); }
GFLV2_HD float value_of(std::int32_t bits) { return as_float(std::uint32_t(bits)); }
GFLV2_HD std::int32_t shifted_right(std::int32_t value, int places) {
    return std::int32_t(std::uint32_t(value) >> places);
}
GFLV2_HD double widened(float value) { return value; }
GFLV2_HD float narrowed(double value) { return float(value); }
GFLV2_HD double root(double value) { return sqrt(value); }
GFLV2_HD float root(float value) { return sqrtf(value); }

GFLV2_END
