// What a power with a fixed exponent is made of, for one number; csrc/cpu/powers.hpp adds vectors.
#pragma once

#include <cmath>

#include "gflv2/macros.hpp"

GFLV2_BEGIN

// Correctly rounded.
GFLV2_HD float square_root(float value) { return sqrtf(value); }

// base^exponent in double, rounded once. Out of line on a GPU: a power in double needs more registers than all else.
#if defined(__CUDACC__)
__host__ __device__ __noinline__ inline float double_power(float base, double exponent) {
    return float(pow(double(base), exponent));
}
#else
GFLV2_HD float double_power(float base, double exponent) { return float(pow(double(base), exponent)); }
#endif

GFLV2_END
