// gflv2/logarithm.hpp for vectors. Include this in place of that.
#pragma once

#include "cpu/lanes.hpp"

GFLV2_BEGIN

// float64 serves gradient checks, not speed.
GFLV2_HD Doubles minus_log(Doubles value, Doubles complement) {
    for (int i = 0; i < lanes<double>; ++i)
        value[i] = value[i] < 0.5 ? -std::log(value[i]) : -std::log1p(-complement[i]);
    return value;
}

GFLV2_END

#include "gflv2/logarithm.hpp"
