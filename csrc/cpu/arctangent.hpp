// gflv2/arctangent.hpp for vectors. Include this in place of that.
#pragma once

#include "cpu/simd.hpp"

GFLV2_BEGIN

// float64 serves gradient checks, not speed.
GFLV2_HD Doubles angle(Doubles y, Doubles x) {
    for (int i = 0; i < lanes<double>; ++i) y[i] = std::atan2(y[i], x[i]);
    return y;
}

GFLV2_END

#include "gflv2/arctangent.hpp"
