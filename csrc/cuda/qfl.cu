// `qfl` on CUDA: cuda/class_maps.cuh with the arithmetic of gflv2/qfl.hpp.

#include "cuda/class_maps.cuh"
#include "cuda/dtypes.cuh"
#include "cuda/loss_reduction.cuh"  // total_of_blocks
#include "gflv2/qfl.hpp"

namespace gflv2::cuda {
namespace {

// SQUARE: β is 2 and the target has labels.
template <class T, QflForm FORM, bool SQUARE, bool BACKWARD, int PACK, int AT>
GFLV2_KERNEL(threads, (blocks_at_once<PACK, AT>))
qfl_points(GFLV2_CONSTANT QflArguments a, GFLV2_CONSTANT BlockTable blocks, GFLV2_CONSTANT Sharing given,
           std::uint32_t* counter) {
    GFLV2_SHARED_MEMORY(float, memory);
    go_through_maps<T, QflElements<float, FORM, SQUARE ? 4 : 0>, BACKWARD, PACK, AT>(a, blocks, given, memory, counter);
}

template <class T, QflForm FORM, bool SQUARE, bool BACKWARD, int PACK, int AT = at_a_time>
void start_as(const QflArguments& a, const Sharing& sharing, void* stream) {
    start<BACKWARD>(qfl_points<T, FORM, SQUARE, BACKWARD, PACK, AT>, a, sharing, stream);
}

template <class T, QflForm FORM, bool BACKWARD> void run(const QflArguments& a, void* stream) {
    const bool square = a.beta == 2 && a.labels;
    if (classes_adjacent(a.levels, BACKWARD && a.grad_logits)) {
        const Sharing sharing = classes_share(a.classes);
        return square ? start_as<T, FORM, true, BACKWARD, 1>(a, sharing, stream)
                      : start_as<T, FORM, false, BACKWARD, 1>(a, sharing, stream);
    }
    if constexpr (sizeof(T) == 2 && FORM != QflForm::probabilities) {
        // What is left over of a group is slow: the large groups must not leave more.
        if constexpr (FORM == QflForm::joint) {
            const unsigned left = unsigned(a.classes) % (at_most * pairs_share.parts);
            if (square && left < at_a_time * pairs_share.parts)
                return start_as<T, FORM, true, BACKWARD, 2, at_most>(a, pairs_share, stream);
        }
        if (square) return start_as<T, FORM, true, BACKWARD, 2>(a, pairs_share, stream);
    }
    square ? start_as<T, FORM, true, BACKWARD, 1>(a, points_share, stream)
           : start_as<T, FORM, false, BACKWARD, 1>(a, points_share, stream);
}

template <class T, bool BACKWARD> void run(const QflArguments& a, void* stream) {
    switch (a.form) {
        case QflForm::logits: return run<T, QflForm::logits, BACKWARD>(a, stream);
        case QflForm::joint: return run<T, QflForm::joint, BACKWARD>(a, stream);
        case QflForm::probabilities: return run<T, QflForm::probabilities, BACKWARD>(a, stream);
    }
}

template <bool BACKWARD> void run(const QflArguments& a, Place place) {
    run_as("qfl", a.dtype, place, [&](auto zero) { run<decltype(zero), BACKWARD>(a, place.stream); });
}

}  // namespace

void qfl_forward(const QflArguments& a, Place place) { run<false>(a, place); }
void qfl_backward(const QflArguments& a, Place place) { run<true>(a, place); }

std::size_t qfl_workspace(const LevelTable& levels, std::int64_t batch) { return workspace_of_maps(levels, batch); }

}  // namespace gflv2::cuda
