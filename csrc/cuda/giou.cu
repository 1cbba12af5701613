// `giou`, `iou` and `ciou` on CUDA: one pair of boxes a thread. The arithmetic is that of gflv2/giou.hpp and
// gflv2/ciou.hpp.

#include "cuda/dtypes.cuh"
#include "cuda/level_rows.cuh"
#include "cuda/loss_reduction.cuh"
#include "gflv2/api.hpp"
#include "gflv2/ciou.hpp"
#include "gflv2/giou.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {
namespace {

// Can boxes be read and written four corners at a time?
template <class T> __device__ inline bool together(const T* boxes, std::int64_t row_stride, std::int64_t side_stride) {
    return side_stride == 1 && row_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(boxes) % sizeof(Four<T>) == 0;
}

template <class T>
__device__ inline void load_box(float* corners, const void* boxes, std::int64_t row, std::int64_t row_stride,
                                std::int64_t side_stride) {
    const T* const first = static_cast<const T*>(boxes);
    const T* const at = first + row * row_stride;
    if (together(first, row_stride, side_stride)) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(at);
        each<4>(4, [&](int i) { corners[i] = widen(four.value[i]); });
    } else {
        each<4>(4, [&](int i) { corners[i] = widen(at[i * side_stride]); });
    }
}

// To boxes (N, 4) without gaps; null: not wanted.
template <class T> __device__ inline void store_box(void* boxes, std::int64_t row, const float* corners) {
    T* const first = static_cast<T*>(boxes);
    if (first == nullptr) return;
    if (together<T>(first, 4, 1)) store_four(first + 4 * row, corners);
    else each<4>(4, [&](int i) { first[4 * row + i] = narrow<T>(corners[i]); });
}

template <class T, BoxForm FORM, bool BACKWARD>
GFLV2_KERNEL(threads)
giou_kernel(GFLV2_CONSTANT GiouArguments a, std::uint32_t* counter) {
    GFLV2_SHARED_MEMORY(double, scratch);  // (threads,), forward only
    constexpr bool LOSS = FORM != BoxForm::iou, CIOU = FORM > BoxForm::giou, MMDET = FORM == BoxForm::ciou_mmdet;
    const std::int64_t row = std::int64_t(blockIdx.x) * threads + threadIdx.x;
    const float eps = float(a.eps);

    // 1. The thread's pair.
    float sum = 0;
    if (row < a.rows) {
        float pred[4], target[4];
        load_box<T>(pred, a.pred, row, a.row_stride, a.side_stride);
        load_box<float>(target, a.target, row, 4, 1);
        const BoxPair<float> pair = box_pair(pred, target, eps);
        if constexpr (BACKWARD) {
            float grad_pred[4], grad_target[4];
            const float upstream = upstream_of_row(a.reduction, row);
            if constexpr (CIOU)
                ciou_gradients<MMDET, float>(pair, ciou_pair<MMDET>(pair, pred, target, eps), pred, target, upstream,
                                             grad_pred, grad_target);
            else giou_gradients<LOSS, true>(pair, pred, target, eps, upstream, grad_pred, grad_target);
            store_box<T>(a.grad_pred, row, grad_pred);
            store_box<float>(a.grad_target, row, grad_target);
        } else if constexpr (CIOU) {
            sum = reduced_row(a.reduction, row, ciou_loss<MMDET, float>(ciou_pair<MMDET>(pair, pred, target, eps)));
        } else {
            sum = reduced_row(a.reduction, row, giou_value<LOSS, float>(pair));
        }
    }

    // 2. The total.
    if constexpr (!BACKWARD) total_over_blocks<threads>(a.reduction, a.workspace, sum, scratch, counter);
}

template <class T, BoxForm FORM, bool BACKWARD> void run(const GiouArguments& a, void* stream) {
    const auto kernel = giou_kernel<T, FORM, BACKWARD>;
    const std::uint32_t blocks = blocks_of_rows<threads>(a.rows);
    const auto start = [&](std::uint32_t* counter) {
        launch(kernel, blocks, threads, BACKWARD ? 0 : threads * sizeof(double), stream, a, counter);
    };
    launch_loss<threads, BACKWARD>(a.reduction, a.workspace, blocks, stream, start);
}

template <bool BACKWARD> void run(const GiouArguments& a, Place place) {
    run_as("giou", a.dtype, place, [&](auto zero) {
        using T = decltype(zero);
        switch (a.form) {
            case BoxForm::iou: return run<T, BoxForm::iou, BACKWARD>(a, place.stream);
            case BoxForm::giou: return run<T, BoxForm::giou, BACKWARD>(a, place.stream);
            case BoxForm::ciou: return run<T, BoxForm::ciou, BACKWARD>(a, place.stream);
            case BoxForm::ciou_mmdet: return run<T, BoxForm::ciou_mmdet, BACKWARD>(a, place.stream);
        }
    });
}

}  // namespace

void giou_forward(const GiouArguments& a, Place place) { run<false>(a, place); }
void giou_backward(const GiouArguments& a, Place place) { run<true>(a, place); }

std::size_t giou_workspace(std::int64_t rows) { return total_workspace(blocks_of_rows<threads>(rows)); }

}  // namespace gflv2::cuda
