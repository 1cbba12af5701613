// `giou`, `iou` and `ciou` on a CPU: one pair of boxes in each lane. The arithmetic is that of gflv2/giou.hpp and
// gflv2/ciou.hpp.

#include <algorithm>
#include <type_traits>

#include "cpu/arctangent.hpp"
#include "cpu/kernels.hpp"
#include "cpu/loss_reduction.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/ciou.hpp"
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

template <class T, BoxForm FORM, bool BACKWARD>
double run_rows(const GiouArguments& a, std::int64_t first, std::int64_t count) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr bool LOSS = FORM != BoxForm::iou, CIOU = FORM > BoxForm::giou, MMDET = FORM == BoxForm::ciou_mmdet;
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
        [[maybe_unused]] CiouPair<V> ciou;
        if constexpr (CIOU) ciou = ciou_pair<MMDET>(pair, pred, target, eps);
        if constexpr (BACKWARD) {
            V grad_pred[4], grad_target[4];
            const V upstream = load(upstreams + i);
            if constexpr (CIOU) ciou_gradients<MMDET, S>(pair, ciou, pred, target, upstream, grad_pred, grad_target);
            else giou_gradients<LOSS, true>(pair, pred, target, eps, upstream, grad_pred, grad_target);
            if (a.grad_pred) store_boxes(static_cast<T*>(a.grad_pred) + row * 4, grad_pred, used);
            if (a.grad_target) store_boxes(static_cast<S*>(a.grad_target) + row * 4, grad_target, used);
        }
        if (values_wanted) {
            if constexpr (CIOU) store(values + i, ciou_loss<MMDET, S>(ciou));
            else store(values + i, giou_value<LOSS, S>(pair));
        }
    }
    return values_wanted ? reduce_rows(a.reduction, first, count, values) : 0;
}

template <bool BACKWARD> void run(const GiouArguments& a, int threads) {
    const auto rows = with_type(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        switch (a.form) {
            case BoxForm::iou: return run_rows<T, BoxForm::iou, BACKWARD>;
            case BoxForm::giou: return run_rows<T, BoxForm::giou, BACKWARD>;
            case BoxForm::ciou: return run_rows<T, BoxForm::ciou, BACKWARD>;
            default: return run_rows<T, BoxForm::ciou_mmdet, BACKWARD>;
        }
    });
    const int work = a.form > BoxForm::giou ? 4 : 2;
    threads = threads_for(a.rows * (BACKWARD ? 2 * work : work), threads);
    reduce_tasks(a.reduction, a.dtype, a.rows, threads,
                 [&](std::int64_t first, std::int64_t count) { return rows(a, first, count); });
}

}  // namespace

void giou_forward(const GiouArguments& a, int threads) { run<false>(a, threads); }
void giou_backward(const GiouArguments& a, int threads) { run<true>(a, threads); }

GFLV2_END
