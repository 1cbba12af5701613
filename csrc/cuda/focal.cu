// `focal` on CUDA: cuda/class_maps.cuh with the arithmetic of gflv2/focal.hpp.

#include "cuda/class_maps.cuh"
#include "cuda/dtypes.cuh"
#include "cuda/loss_reduction.cuh"  // total_of_blocks
#include "gflv2/focal.hpp"

namespace gflv2::cuda {
namespace {

// HALVES: twice γ, or 0: any γ.
template <class T, bool DETACHED, int HALVES, bool BACKWARD, int PACK>
GFLV2_KERNEL(threads, (blocks_at_once<PACK, at_a_time>))
focal_points(GFLV2_CONSTANT FocalArguments a, GFLV2_CONSTANT BlockTable blocks, GFLV2_CONSTANT Sharing given,
             std::uint32_t* counter) {
    GFLV2_SHARED_MEMORY(float, memory);
    go_through_maps<T, FocalElements<float, DETACHED, HALVES>, BACKWARD, PACK, at_a_time>(a, blocks, given, memory,
                                                                                          counter);
}

template <class T, bool DETACHED, int HALVES, bool BACKWARD> void run(const FocalArguments& a, void* stream) {
    if (classes_adjacent(a.levels, BACKWARD && a.grad_logits))
        return start<BACKWARD>(focal_points<T, DETACHED, HALVES, BACKWARD, 1>, a, classes_share(a.classes), stream);
    if constexpr (sizeof(T) == 2 && HALVES != 0)
        return start<BACKWARD>(focal_points<T, DETACHED, HALVES, BACKWARD, 2>, a, pairs_share, stream);
    else return start<BACKWARD>(focal_points<T, DETACHED, HALVES, BACKWARD, 1>, a, points_share, stream);
}

template <class T, bool DETACHED, bool BACKWARD> void run(const FocalArguments& a, void* stream) {
    // The exponents of the published settings.
    if (a.gamma == 2) return run<T, DETACHED, 4, BACKWARD>(a, stream);
    if (a.gamma == 1.5) return run<T, DETACHED, 3, BACKWARD>(a, stream);
    run<T, DETACHED, 0, BACKWARD>(a, stream);
}

}  // namespace

// A weight that is a constant is one to the gradient only.
void focal_forward(const FocalArguments& a, Place place) {
    run_as("focal", a.dtype, place, [&](auto zero) { run<decltype(zero), false, false>(a, place.stream); });
}

void focal_backward(const FocalArguments& a, Place place) {
    run_as("focal", a.dtype, place, [&](auto zero) {
        using T = decltype(zero);
        a.detach ? run<T, true, true>(a, place.stream) : run<T, false, true>(a, place.stream);
    });
}

std::size_t focal_workspace(const LevelTable& levels, std::int64_t batch) { return workspace_of_maps(levels, batch); }

}  // namespace gflv2::cuda
