// Losses of rows to the result, and the upstream gradient back to the rows. A task gives one double; the tasks are
// summed in their order, so that the result has the same bits on any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/api/reduction.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/types.hpp"

GFLV2_BEGIN

template <class S> S row_weight(const Reduction& r, std::int64_t row) {
    return r.weight ? static_cast<const S*>(r.weight)[row] : S(1);
}

// The divisors of the total together.
template <class S> double total_divisor(const Reduction& r) {
    return r.factor ? r.divisor * double(*static_cast<const S*>(r.factor)) : r.divisor;
}

// Σ f(i) for i below count. Eight sums side by side, whatever the instruction set: one alone would make every addition
// wait for the last one.
template <class F> double sum_of(std::int64_t count, const F& f) {
    double sums[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 8; ++k) sums[k] += double(f(i + k));
    for (int k = 0; i + k < count; ++k) sums[k] += double(f(i + k));
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Writes the losses of rows [first, first + count), or returns their sum.
template <class S> double reduce_rows(const Reduction& r, std::int64_t first, std::int64_t count, const S* losses) {
    const S* weight = r.weight ? static_cast<const S*>(r.weight) + first : nullptr;
    if (r.total && weight) return sum_of(count, [&](std::int64_t i) { return losses[i] * weight[i]; });
    if (r.total) return sum_of(count, [&](std::int64_t i) { return losses[i]; });
    for (std::int64_t i = 0; i < count; ++i)
        static_cast<S*>(r.out)[first + i] = losses[i] * row_weight<S>(r, first + i);
    return 0;
}

// `dtype`: of the logits or boxes.
inline void write_total(const Reduction& r, Dtype dtype, const std::vector<double>& sums) {
    if (!r.total || !r.out) return;
    double total = 0;
    for (const double sum : sums) total += sum;
    if (dtype == Dtype::float64) *static_cast<double*>(r.out) = total / total_divisor<double>(r);
    else *static_cast<float*>(r.out) = float(total / total_divisor<float>(r));
}

// Of independent rows: losses(first, count) gives what reduce_rows returns, task by task.
template <class Losses>
void reduce_tasks(const Reduction& r, Dtype dtype, std::int64_t rows, int threads, const Losses& losses) {
    std::vector<double> sums((rows + points_per_task - 1) / points_per_task);
    parallel_for(std::int64_t(sums.size()), threads, [&](std::int64_t i) {
        const std::int64_t first = i * points_per_task;
        sums[i] = losses(first, std::min(points_per_task, rows - first));
    });
    write_total(r, dtype, sums);
}

// ∂L/∂(loss of a row) of rows [first, first + count); without an upstream gradient ∂(result)/∂(loss of a row).
template <class S> void upstream_of_rows(const Reduction& r, std::int64_t first, std::int64_t count, S* to) {
    const S* grad = static_cast<const S*>(r.grad_out);
    const S every = r.total ? S((grad ? double(*grad) : 1.0) / total_divisor<S>(r)) : S(1);
    const bool alike = r.total || !grad;
    for (std::int64_t i = 0; i < count; ++i) to[i] = (alike ? every : grad[first + i]) * row_weight<S>(r, first + i);
}

GFLV2_END
