// `qfl` on a CPU: cpu/class_maps.hpp with the arithmetic of gflv2/qfl.hpp.

#include "cpu/class_maps.hpp"
#include "cpu/kernels.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

using class_maps::Pass;

template <Pass PASS> void run(const QflArguments& a, int threads) {
    const auto task = with_type(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        using S = compute_t<T>;
        return a.form == QflForm::logits  ? class_maps::run_task<QflElements<S, QflForm::logits>, PASS, T>
               : a.form == QflForm::joint ? class_maps::run_task<QflElements<S, QflForm::joint>, PASS, T>
                                          : class_maps::run_task<QflElements<S, QflForm::probabilities>, PASS, T>;
    });
    class_maps::run<PASS>(a, threads, task);
}

}  // namespace

void qfl_forward(const QflArguments& a, int threads) { run<Pass::forward>(a, threads); }

void qfl_backward(const QflArguments& a, int threads) {
    a.reduction.out ? run<Pass::both>(a, threads) : run<Pass::backward>(a, threads);
}

GFLV2_END
