// The angle of a point. V is a number or a vector of numbers.
#pragma once

#include <cmath>

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// Of (x, y), from −π to π, within two units in the last place of its largest part; not for (0, 0).
template <class V> GFLV2_HD V angle(V y, V x) {
    const V zero = V{}, height = maximum(y, V(-y)), width = maximum(x, V(-x));
    // atan(t) for 0 ≤ t ≤ 1: t + t³·p(t²), where p is the polynomial of degree 7 that minimises the largest relative
    // error (2e-8).
    const V t = minimum(height, width) / maximum(height, width), square = t * t;
    V p = broadcast<V>(2.920654137e-3f);
    p = multiply_add(p, square, broadcast<V>(-1.636778563e-2f));
    p = multiply_add(p, square, broadcast<V>(4.321164638e-2f));
    p = multiply_add(p, square, broadcast<V>(-7.552197576e-2f));
    p = multiply_add(p, square, broadcast<V>(1.066599786e-1f));
    p = multiply_add(p, square, broadcast<V>(-1.421105415e-1f));
    p = multiply_add(p, square, broadcast<V>(1.999377310e-1f));
    p = multiply_add(p, square, broadcast<V>(-3.333315253e-1f));
    V turn = multiply_add(V(square * p), t, t);
    turn = height > width ? V(broadcast<V>(1.57079632679f) - turn) : turn;
    turn = x < zero ? V(broadcast<V>(3.14159265359f) - turn) : turn;
    return y < zero ? V(-turn) : turn;
}

GFLV2_HD double angle(double y, double x) { return atan2(y, x); }

GFLV2_END
