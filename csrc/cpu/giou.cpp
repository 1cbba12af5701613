// `giou` and `iou` on a CPU: one pair of boxes in each lane. The arithmetic is gflv2/giou.hpp's.

#include <algorithm>
#include <type_traits>

#include "cpu/kernels.hpp"
#include "cpu/loss_reduction.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/giou.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

// Four corners of `used` ≤ lanes boxes; the other lanes are 0.
template <class T>
void load_boxes(vector_t<compute_t<T>>* corners, const T* at, std::int64_t row_stride, std::int64_t side_stride,
                int used) {
    using S = compute_t<T>;
    if constexpr (std::is_same_v<T, S>)
        if (used == lanes<S> && side_stride == 1 && row_stride == 4) return load_interleaved(at, corners);
    load_tile(corners, at, row_stride, side_stride, 4, used);
}

template <class T> void store_boxes(T* at, vector_t<compute_t<T>>* corners, int used) {
    using S = compute_t<T>;
    if constexpr (std::is_same_v<T, S>)
        if (used == lanes<S>) return store_interleaved(at, corners);
    store_tile(at, corners, 4, 1, 4, used);
}

template <class T, bool LOSS, bool BACKWARD>
double run_rows(const GiouArguments& a, std::int64_t first, std::int64_t count) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const S eps = S(a.eps);
    const bool values_wanted = !BACKWARD || a.reduction.out;
    alignas(64) S values[points_per_task + n];
    alignas(64) S upstreams[points_per_task + n] = {};
    if (BACKWARD) upstream_of_rows<S>(a.reduction, first, count, upstreams);

    for (std::int64_t i = 0; i < count; i += n) {
        const int used = int(std::min<std::int64_t>(n, count - i));
        const std::int64_t row = first + i;
        V pred[4], target[4];
        load_boxes(pred, static_cast<const T*>(a.pred) + row * a.row_stride, a.row_stride, a.side_stride, used);
        load_boxes(target, static_cast<const S*>(a.target) + row * 4, 4, 1, used);
        const BoxPair<V> pair = box_pair(pred, target, eps);
        if constexpr (BACKWARD) {
            V grad_pred[4], grad_target[4];
            giou_gradients<LOSS, true>(pair, pred, target, eps, load(upstreams + i), grad_pred, grad_target);
            if (a.grad_pred) store_boxes(static_cast<T*>(a.grad_pred) + row * 4, grad_pred, used);
            if (a.grad_target) store_boxes(static_cast<S*>(a.grad_target) + row * 4, grad_target, used);
        }
        if (values_wanted) store(values + i, giou_value<LOSS, S>(pair));
    }
    return values_wanted ? reduce_rows(a.reduction, first, count, values) : 0;
}

template <bool BACKWARD> void run(const GiouArguments& a, int threads) {
    const auto rows = with_type(a.dtype, [&](auto zero) {
        return a.loss ? run_rows<decltype(zero), true, BACKWARD> : run_rows<decltype(zero), false, BACKWARD>;
    });
    threads = threads_for(a.rows * (BACKWARD ? 4 : 2), threads);
    reduce_tasks(a.reduction, a.dtype, a.rows, threads,
                 [&](std::int64_t first, std::int64_t count) { return rows(a, first, count); });
}

}  // namespace

void giou_forward(const GiouArguments& a, int threads) { run<false>(a, threads); }
void giou_backward(const GiouArguments& a, int threads) { run<true>(a, threads); }

GFLV2_END
