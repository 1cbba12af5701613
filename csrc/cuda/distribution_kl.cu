// `distribution_kl` on CUDA: one row a thread. The rows of a block travel through shared memory, so that global memory
// sees whole lines whichever dimension is the inner one; the exponentials, then the gradients, take the place of the
// logits there. The arithmetic is gflv2/distribution_kl.hpp's.

#include "cuda/dtypes.cuh"
#include "cuda/loss_reduction.cuh"
#include "cuda/matrix_rows.cuh"
#include "gflv2/api.hpp"
#include "gflv2/distribution_kl.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {
namespace {

// Rows of a block: with two tiles of 65 bins it stays below the 48 KB that every launch may have.
constexpr unsigned rows_of_block = 64;

template <class T, int BINS>
__device__ inline void to_shared(const LogitRows& from, std::int64_t first, std::uint32_t rows, int bins, float* tile) {
    const T* const at = static_cast<const T*>(from.at) + first * from.row_stride;
    matrix_to_shared<rows_of_block, BINS>(at, rows, bins, from.row_stride, from.bin_stride, tile);
}

// The teacher has a dtype of its own, which is looked up once a block.
template <int BINS>
__device__ inline void teacher_to_shared(const LogitRows& from, std::int64_t first, std::uint32_t rows, int bins,
                                         float* tile) {
    if (from.dtype == Dtype::float16) to_shared<half, BINS>(from, first, rows, bins, tile);
    else if (from.dtype == Dtype::bfloat16) to_shared<bfloat16, BINS>(from, first, rows, bins, tile);
    else to_shared<float, BINS>(from, first, rows, bins, tile);
}

template <class T, int BINS, bool BACKWARD>
GFLV2_KERNEL(rows_of_block)
distribution_kl_kernel(GFLV2_CONSTANT DistributionKlArguments a, KlFactors<float> factors, std::uint32_t* counter) {
    GFLV2_SHARED_MEMORY(float, tiles);  // (2, rows_of_block, pitch): the student's rows, the teacher's
    const int bins = BINS > 0 ? BINS : a.bins;
    float* const teachers = tiles + rows_of_block * pitch_of(bins);

    // 1. The block's rows to shared memory.
    const std::int64_t first = std::int64_t(blockIdx.x) * rows_of_block, left = a.rows - first;
    const std::uint32_t rows = left < rows_of_block ? std::uint32_t(left) : rows_of_block;
    to_shared<T, BINS>(a.logits, first, rows, bins, tiles);
    teacher_to_shared<BINS>(a.teacher, first, rows, bins, teachers);
    __syncthreads();

    // 2. One row a thread.
    float sum = 0;
    if (threadIdx.x < rows) {
        float* const student = tiles + threadIdx.x * pitch_of(bins);
        float* const teacher = teachers + threadIdx.x * pitch_of(bins);
        const std::int64_t index = first + threadIdx.x;
        if constexpr (BACKWARD) {
            const KlRow<float> r = kl_row<BINS, float, float>(student, teacher, bins, factors.inverse,
                                                              [&](int b, float e_student, float e_teacher) {
                student[b] = e_student;
                teacher[b] = e_teacher;
            });
            const float over_student = 1.0f / r.student, over_teacher = 1.0f / r.teacher;
            const float upstream = upstream_of_row(a.reduction, index) * factors.gradient;
            each<BINS>(bins, [&](int b) {
                student[b] = kl_gradient(student[b], teacher[b], over_student, over_teacher, upstream);
            });
        } else {
            const KlRow<float> r =
                kl_row<BINS, float, float>(student, teacher, bins, factors.inverse, [](int, float, float) {});
            sum = reduced_row(a.reduction, index,
                              kl_loss<float>(r.student / r.teacher, r.weighted / r.teacher, factors.loss));
        }
    }

    // 3. Backward: back to global memory. Forward: the total.
    if constexpr (BACKWARD) {
        __syncthreads();
        T* const to = static_cast<T*>(a.grad_logits) + first * a.grad_row_stride;
        matrix_from_shared<rows_of_block, BINS>(to, rows, bins, a.grad_row_stride, a.grad_bin_stride, tiles);
    } else {
        total_over_blocks<rows_of_block>(a.reduction, a.workspace, sum, tiles, counter);
    }
}

template <class T, bool BACKWARD> void run(const DistributionKlArguments& a, void* stream) {
    const auto kernel =
        with_bins(a.bins, [](auto bins) { return distribution_kl_kernel<T, decltype(bins)::value, BACKWARD>; });
    const std::uint32_t blocks = blocks_of_rows<rows_of_block>(a.rows);
    const std::size_t shared = 2 * rows_of_block * pitch_of(a.bins) * sizeof(float);
    const auto start = [&](std::uint32_t* counter) {
        launch(kernel, blocks, rows_of_block, shared, stream, a, kl_factors<float>(a.temperature, a.bins), counter);
    };
    launch_loss<rows_of_block, BACKWARD>(a.reduction, a.workspace, blocks, stream, start);
}

// The teacher may have any dtype that the kernels take.
template <bool BACKWARD> void run(const DistributionKlArguments& a, Place place) {
    const Dtype dtype = a.teacher.dtype == Dtype::float64 ? a.teacher.dtype : a.logits.dtype;
    run_as("distribution_kl", dtype, place, [&](auto zero) { run<decltype(zero), BACKWARD>(a, place.stream); });
}

}  // namespace

void distribution_kl_forward(const DistributionKlArguments& a, Place place) { run<false>(a, place); }
void distribution_kl_backward(const DistributionKlArguments& a, Place place) { run<true>(a, place); }

std::size_t distribution_kl_workspace(std::int64_t rows) {
    return total_workspace(blocks_of_rows<rows_of_block>(rows));
}

}  // namespace gflv2::cuda
