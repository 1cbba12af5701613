// From what is known at run time to the instance of a template.
#pragma once

#include <type_traits>

#include "gflv2/macros.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

template <int N> constexpr std::integral_constant<int, N> constant{};

// f(zero); the type of `zero` is that of the elements.
template <class F> auto with_type(Dtype dtype, const F& f) {
    if (dtype == Dtype::float16) return f(half{});
    if (dtype == Dtype::bfloat16) return f(bfloat16{});
    return dtype == Dtype::float64 ? f(double{}) : f(float{});
}

// f(constant): the number of bins where kernels are compiled for it, else 0.
template <class F> auto with_bins(int bins, const F& f) {
    if (bins == 17) return f(constant<17>);
    return bins == 33 ? f(constant<33>) : f(constant<0>);
}

// Both. float64 serves gradient checks: one instance is enough.
template <class F> auto with_type_and_bins(Dtype dtype, int bins, const F& f) {
    return with_type(dtype, [&](auto zero) {
        if constexpr (sizeof zero == sizeof(double)) return f(zero, constant<0>);
        else return with_bins(bins, [&](auto count) { return f(zero, count); });
    });
}

GFLV2_END
