// `focal` on a CPU: cpu/class_maps.hpp with the arithmetic of gflv2/focal.hpp.

// Before the arithmetic, whose templates find only the vectors' functions that were declared before them.
#include "cpu/class_maps.hpp"

#include "cpu/kernels.hpp"
#include "gflv2/focal.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

using class_maps::Pass;

template <Pass PASS, bool DETACHED, int HALVES> void run(const FocalArguments& a, int threads) {
    const auto task = with_type(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        return class_maps::run_task<FocalElements<compute_t<T>, DETACHED, HALVES>, PASS, T>;
    });
    class_maps::run<PASS>(a, threads, task);
}

template <Pass PASS> void run(const FocalArguments& a, int threads) {
    // The exponents of the published settings.
    const int halves = a.gamma == 2 ? 4 : a.gamma == 1.5 ? 3 : 0;
    if (PASS == Pass::forward || !a.detach)
        return halves == 4   ? run<PASS, false, 4>(a, threads)
               : halves == 3 ? run<PASS, false, 3>(a, threads)
                             : run<PASS, false, 0>(a, threads);
    if constexpr (PASS != Pass::forward)
        halves == 4   ? run<PASS, true, 4>(a, threads)
        : halves == 3 ? run<PASS, true, 3>(a, threads)
                      : run<PASS, true, 0>(a, threads);
}

}  // namespace

void focal_forward(const FocalArguments& a, int threads) { run<Pass::forward>(a, threads); }

void focal_backward(const FocalArguments& a, int threads) {
    a.reduction.out ? run<Pass::both>(a, threads) : run<Pass::backward>(a, threads);
}

GFLV2_END
