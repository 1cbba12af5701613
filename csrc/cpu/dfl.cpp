// `dfl` on a CPU: one row in each lane. The arithmetic is gflv2/dfl.hpp's.

#include <algorithm>
#include <vector>

#include "cpu/batch.hpp"
#include "cpu/kernels.hpp"
#include "cpu/logarithm.hpp"
#include "cpu/parallel.hpp"
#include "cpu/reduction.hpp"
#include "gflv2/dfl.hpp"

GFLV2_BEGIN

namespace {

template <class T, bool BACKWARD, int BINS> double run_rows(const DflArguments& a, std::int64_t first, std::int64_t count) {
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
            each<BINS>(a.bins, [&](int b) { tile[b] = dfl_slope<S>(b, tile[b], over_total, target, upstream); });
            store_tile(static_cast<T*>(a.grad_logits) + row * a.grad_row_stride, tile, a.grad_row_stride, a.grad_bin_stride, a.bins, used);
        }
    }
    if (!losses) return 0;
    // Logarithms are long chains of operations: in a loop of their own, one need not wait for the other.
    for (std::int64_t i = 0; i < count; i += n) store(values + i, dfl_loss<S>(load(totals + i), load(values + i)));
    return reduce_rows(a.reduction, first, count, values);
}

using RunRows = double (*)(const DflArguments&, std::int64_t, std::int64_t);

template <bool BACKWARD, class T> RunRows rows_of(int bins) {
    return bins == 17 ? run_rows<T, BACKWARD, 17> : bins == 33 ? run_rows<T, BACKWARD, 33> : run_rows<T, BACKWARD, 0>;
}

template <bool BACKWARD> void run(const DflArguments& a, int threads) {
    const RunRows rows = a.dtype == Dtype::float32    ? rows_of<BACKWARD, float>(a.bins)
                         : a.dtype == Dtype::float16  ? rows_of<BACKWARD, half>(a.bins)
                         : a.dtype == Dtype::bfloat16 ? rows_of<BACKWARD, bfloat16>(a.bins)
                                                      : run_rows<double, BACKWARD, 0>;
    std::vector<double> sums((a.rows + points_per_task - 1) / points_per_task);
    parallel_for(std::int64_t(sums.size()), threads_for(a.rows * a.bins * 2 / 3, threads), [&](std::int64_t i) {
        const std::int64_t first = i * points_per_task;
        sums[i] = rows(a, first, std::min(points_per_task, a.rows - first));
    });
    a.dtype == Dtype::float64 ? write_total<double>(a.reduction, sums) : write_total<float>(a.reduction, sums);
}

}  // namespace

void dfl_forward(const DflArguments& a, int threads) { run<false>(a, threads); }

void dfl_backward(const DflArguments& a, int threads) { run<true>(a, threads); }

GFLV2_END
