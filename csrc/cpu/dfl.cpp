// `dfl` on a CPU: one row in each lane. The arithmetic is gflv2/dfl.hpp's.

#include <algorithm>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/logarithm.hpp"
#include "cpu/parallel.hpp"
#include "cpu/reduction.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/dfl.hpp"

GFLV2_BEGIN

namespace {

template <class T, bool BACKWARD, int BINS> double run_rows(const DflArguments& a, std::int64_t first, std::int64_t count) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>, room = BINS > 0 ? BINS : max_bins;
    const T* logits = static_cast<const T*>(a.logits);
    const S* targets = static_cast<const S*>(a.target);
    alignas(64) S values[points_per_task + n] = {};  // losses, or upstream gradients
    if (BACKWARD) upstream_of_rows<S>(a.reduction, first, count, values);

    for (std::int64_t i = 0; i < count; i += n) {
        const int used = int(std::min<std::int64_t>(n, count - i));
        const std::int64_t row = first + i;
        V tile[room], target = V{};
        load_tile(tile, logits + row * a.row_stride, a.row_stride, a.bin_stride, a.bins, used);
        for (int lane = 0; lane < used; ++lane) target[lane] = targets[row + lane];
        target = clamp_target<S>(target, a.bins);
        if constexpr (BACKWARD) {
            V exponentials[room];
            const DflRow<V> r = dfl_row<BINS, S>(tile, a.bins, target, [&](int b, V e) { exponentials[b] = e; });
            const V over_total = S(1) / r.total, upstream = load(values + i);
            each<BINS>(a.bins, [&](int b) { tile[b] = dfl_slope<S>(b, exponentials[b], over_total, target, upstream); });
            store_tile(static_cast<T*>(a.grad_logits) + row * a.grad_row_stride, tile, a.grad_row_stride, a.grad_bin_stride, a.bins, used);
        } else {
            store(values + i, dfl_row<BINS, S>(tile, a.bins, target, [](int, V) {}).loss);
        }
    }
    return BACKWARD ? 0 : reduce_rows(a.reduction, first, count, values);
}

using RunRows = double (*)(const DflArguments&, std::int64_t, std::int64_t);

template <bool BACKWARD, class T> RunRows rows_of(int bins) {
    return bins == 17 ? run_rows<T, BACKWARD, 17> : bins == 33 ? run_rows<T, BACKWARD, 33> : run_rows<T, BACKWARD, 0>;
}

template <bool BACKWARD> std::vector<double> run(const DflArguments& a, int threads) {
    const RunRows rows = a.dtype == Dtype::float32    ? rows_of<BACKWARD, float>(a.bins)
                         : a.dtype == Dtype::float16  ? rows_of<BACKWARD, half>(a.bins)
                         : a.dtype == Dtype::bfloat16 ? rows_of<BACKWARD, bfloat16>(a.bins)
                                                      : run_rows<double, BACKWARD, 0>;
    std::vector<double> sums((a.rows + points_per_task - 1) / points_per_task);
    parallel_for(std::int64_t(sums.size()), threads, [&](std::int64_t i) {
        const std::int64_t first = i * points_per_task;
        sums[i] = rows(a, first, std::min(points_per_task, a.rows - first));
    });
    return sums;
}

}  // namespace

void dfl_forward(const DflArguments& a, int threads) {
    const std::vector<double> sums = run<false>(a, threads);
    a.dtype == Dtype::float64 ? write_total<double>(a.reduction, sums) : write_total<float>(a.reduction, sums);
}

void dfl_backward(const DflArguments& a, int threads) { run<true>(a, threads); }

GFLV2_END
