// What a power with a fixed exponent is made of, for one number; csrc/cpu/powers.hpp adds vectors.
#pragma once

#include <cmath>

#include "gflv2/macros.hpp"

GFLV2_BEGIN

// Correctly rounded.
GFLV2_HD float square_root(float value) { return sqrtf(value); }

// base^exponent in double, rounded once. (Out of line on a GPU, ptxas spills registers round the call.)
GFLV2_HD float double_power(float base, double exponent) { return float(pow(double(base), exponent)); }

GFLV2_END
