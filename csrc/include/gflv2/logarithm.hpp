// A logarithm that is as exact near 1 as far from it. V is a number or a vector of numbers.
#pragma once

#include <cmath>

#include "gflv2/lanes.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// log(1 + f) for √½ − 1 ≤ f ≤ √2 − 1: f + f²·p(f), where p is the polynomial of degree 7 that minimises the largest
// relative error (3e-8).
template <class V> GFLV2_HD V log_near_one(V f) {
    V p = broadcast<V>(8.734750748e-2f);
    p = multiply_add(p, f, broadcast<V>(-1.430748254e-1f));
    p = multiply_add(p, f, broadcast<V>(1.491798908e-1f));
    p = multiply_add(p, f, broadcast<V>(-1.657051444e-1f));
    p = multiply_add(p, f, broadcast<V>(1.996207088e-1f));
    p = multiply_add(p, f, broadcast<V>(-2.500175536e-1f));
    p = multiply_add(p, f, broadcast<V>(3.333395123e-1f));
    p = multiply_add(p, f, broadcast<V>(-4.999999106e-1f));
    return multiply_add(V(f * f), p, f);
}

// −log(value) for a normal positive number, within two units in the last place. `complement` is 1 − value and serves
// where value lies near 1: its relative error is that of the result there.
template <class V> GFLV2_HD V minus_log(V value, V complement) {
    // value = 2^n·m with √½ ≤ m < √2
    constexpr std::int32_t half_root = 0x3f3504f3;  // √½
    const auto above = bits_of(value) - half_root;
    const auto n = above >> 23;
    const V m = value_of((above & 0x7fffff) + half_root);
    const V log_m = log_near_one(n == 0 ? V(-complement) : V(m - 1.0f));
    return -multiply_add(number(n), broadcast<V>(6.931471806e-1f), log_m);
}

GFLV2_HD double minus_log(double value, double complement) {
    return value < 0.5 ? -std::log(value) : -std::log1p(-complement);
}

GFLV2_END
