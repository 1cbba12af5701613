// `distribution_kl` on a CPU: one row in each lane. The arithmetic is gflv2/distribution_kl.hpp's.

#include <algorithm>
#include <type_traits>

#include "cpu/batch.hpp"
#include "cpu/kernels.hpp"
#include "cpu/logarithm.hpp"
#include "cpu/loss_reduction.hpp"
#include "gflv2/distribution_kl.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

template <class T>
void load_rows(vector_t<compute_t<T>>* tile, const LogitRows& rows, std::int64_t row, int bins, int used) {
    load_tile(tile, static_cast<const T*>(rows.at) + row * rows.row_stride, rows.row_stride, rows.bin_stride, bins,
              used);
}

// The teacher has a dtype of its own. It is looked up for every tile: compiled in, it would triple the number of
// kernels.
template <class S> void load_teacher(vector_t<S>* tile, const LogitRows& rows, std::int64_t row, int bins, int used) {
    if constexpr (std::is_same_v<S, double>) return load_rows<double>(tile, rows, row, bins, used);
    else if (rows.dtype == Dtype::float16) load_rows<half>(tile, rows, row, bins, used);
    else if (rows.dtype == Dtype::bfloat16) load_rows<bfloat16>(tile, rows, row, bins, used);
    else load_rows<float>(tile, rows, row, bins, used);
}

template <class T, bool BACKWARD, int BINS>
double run_rows(const DistributionKlArguments& a, std::int64_t first, std::int64_t count) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>, room = BINS > 0 ? BINS : max_bins;
    const KlFactors<S> factors = kl_factors<S>(a.temperature, a.bins);
    const bool losses = !BACKWARD || a.reduction.out;
    alignas(64) S values[points_per_task + n];  // means, then losses
    alignas(64) S ratios[points_per_task + n];
    alignas(64) S upstreams[points_per_task + n];
    if (BACKWARD) {
        upstream_of_rows<S>(a.reduction, first, count, upstreams);
        for (std::int64_t i = 0; i < count; ++i) upstreams[i] *= factors.gradient;
    }

    for (std::int64_t i = 0; i < count; i += n) {
        const int used = int(std::min<std::int64_t>(n, count - i));
        const std::int64_t row = first + i;
        V student[room], teacher[room];
        load_rows<T>(student, a.logits, row, a.bins, used);
        load_teacher<S>(teacher, a.teacher, row, a.bins, used);
        const KlRow<V> r =
            kl_row<BINS, S, V>(student, teacher, a.bins, factors.inverse, [&](int b, V e_student, V e_teacher) {
            if (BACKWARD) student[b] = e_student, teacher[b] = e_teacher;
        });
        if (losses) {
            store(ratios + i, r.student / r.teacher);
            store(values + i, r.weighted / r.teacher);
        }
        if constexpr (BACKWARD) {
            const V over_student = S(1) / r.student, over_teacher = S(1) / r.teacher,
                    upstream = load_used(upstreams + i, used);
            each<BINS>(a.bins, [&](int b) {
                student[b] = kl_gradient(student[b], teacher[b], over_student, over_teacher, upstream);
            });
            store_tile(static_cast<T*>(a.grad_logits) + row * a.grad_row_stride, student, a.grad_row_stride,
                       a.grad_bin_stride, a.bins, used);
        }
    }
    if (!losses) return 0;
    // Logarithms are long chains of operations: in a loop of their own, one need not wait for the other.
    for (std::int64_t i = 0; i < count; i += n)
        store(values + i, kl_loss<S>(load(ratios + i), load(values + i), factors.loss));
    return reduce_rows(a.reduction, first, count, values);
}

template <bool BACKWARD> void run(const DistributionKlArguments& a, int threads) {
    const auto rows = with_type_and_bins(a.logits.dtype, a.bins, [](auto zero, auto bins) {
        return run_rows<decltype(zero), BACKWARD, decltype(bins)::value>;
    });
    reduce_tasks(a.reduction, a.logits.dtype, a.rows, threads,
                 [&](std::int64_t first, std::int64_t count) { return rows(a, first, count); });
}

}  // namespace

void distribution_kl_forward(const DistributionKlArguments& a, int threads) { run<false>(a, threads); }
void distribution_kl_backward(const DistributionKlArguments& a, int threads) { run<true>(a, threads); }

GFLV2_END
