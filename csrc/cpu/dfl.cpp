// `dfl` on a CPU: one row in each lane. The arithmetic is gflv2/dfl.hpp's.

#include <algorithm>

#include "cpu/batch.hpp"
#include "cpu/kernels.hpp"
#include "cpu/logarithm.hpp"
#include "cpu/loss_reduction.hpp"
#include "gflv2/dfl.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

template <class T, bool BACKWARD, int BINS>
double run_rows(const DflArguments& a, std::int64_t first, std::int64_t count) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>, room = BINS > 0 ? BINS : max_bins;
    const T* logits = static_cast<const T*>(a.logits);
    const S* targets = static_cast<const S*>(a.target);
    const bool losses = !BACKWARD || a.reduction.out;
    alignas(64) S values[points_per_task + n];  // chosen, then losses
    alignas(64) S totals[points_per_task + n];
    alignas(64) S upstreams[points_per_task + n];
    if (BACKWARD) upstream_of_rows<S>(a.reduction, first, count, upstreams);

    for (std::int64_t i = 0; i < count; i += n) {
        const int used = int(std::min<std::int64_t>(n, count - i));
        const std::int64_t row = first + i;
        V tile[room];
        load_tile(tile, logits + row * a.row_stride, a.row_stride, a.bin_stride, a.bins, used);
        const DflTarget<V> target = dfl_target<S>(load_used(targets + row, used), a.bins);
        const DflRow<V> r = dfl_row<BINS, S>(tile, a.bins, target, [&](int b, V e) {
            if (BACKWARD) tile[b] = e;
        });
        if (losses) {
            store(totals + i, r.total);
            store(values + i, r.chosen);
        }
        if constexpr (BACKWARD) {
            const V over_total = S(1) / r.total, upstream = load_used(upstreams + i, used);
            each<BINS>(a.bins, [&](int b) { tile[b] = dfl_gradient<S>(b, tile[b], over_total, target, upstream); });
            store_tile(static_cast<T*>(a.grad_logits) + row * a.grad_row_stride, tile, a.grad_row_stride,
                       a.grad_bin_stride, a.bins, used);
        }
    }
    if (!losses) return 0;
    // Logarithms are long chains of operations: in a loop of their own, one need not wait for the other.
    for (std::int64_t i = 0; i < count; i += n) store(values + i, dfl_loss<S>(load(totals + i), load(values + i)));
    return reduce_rows(a.reduction, first, count, values);
}

template <bool BACKWARD> void run(const DflArguments& a, int threads) {
    const auto rows = with_type_and_bins(a.dtype, a.bins, [](auto zero, auto bins) {
        return run_rows<decltype(zero), BACKWARD, decltype(bins)::value>;
    });
    reduce_tasks(a.reduction, a.dtype, a.rows, threads_for(a.rows * a.bins * 2 / 3, threads),
                 [&](std::int64_t first, std::int64_t count) { return rows(a, first, count); });
}

}  // namespace

void dfl_forward(const DflArguments& a, int threads) { run<false>(a, threads); }
void dfl_backward(const DflArguments& a, int threads) { run<true>(a, threads); }

GFLV2_END
