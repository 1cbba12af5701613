// The box losses of `gfl_loss` on CUDA, and what they add to the gradient of the box logits. The arithmetic is
// gflv2/gfl_loss.hpp's. Sums are formed in two stages: a partial sum a block, then one block over them, the one that ends
// last, in an order that depends on the shapes alone.

#include "cuda/block_sum.cuh"
#include "cuda/dgqp_backward.cuh"
#include "cuda/dgqp_tiles_backward.cuh"
#include "cuda/dtypes.cuh"
#include "cuda/level_rows.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/gfl_loss.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

// Shared memory of a block: distances, targets of DFL in bins and its losses, (4, threads) each, and the points that
// count.
constexpr unsigned shared_words = 12 * threads + 1 + threads;

__device__ inline void write_losses(const BoxLossArguments& a, std::uint32_t blocks, double* scratch) {
    const double normaliser = double(static_cast<const float*>(a.normalisers)[1]);
    const double sum = sums_of_partials<2, threads>(static_cast<const float*>(a.workspace), blocks, scratch);
    if (threadIdx.x < 2) *static_cast<float*>(a.losses[threadIdx.x]) = float(sum * a.factors[threadIdx.x] / normaliser);
}

// One thread a point; all of them share out the sides of those that count. Workspace: (blocks, 2): Σ weight·(1 − GIoU),
// Σ weight·DFL.
template <class T>
GFLV2_KERNEL(threads)
box_loss_kernel(GFLV2_CONSTANT BoxLossArguments a, GFLV2_CONSTANT BlockTable blocks, std::uint32_t* counter) {
    GFLV2_SHARED_MEMORY(float, shared);  // shared_words
    float *const distances = shared, *const bins = shared + 4 * threads, *const dfls = shared + 8 * threads;

    // 1. The thread's point. Nearly all points count for nothing: their places, side by side, are filled first.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, threads);
    const Level& level = a.levels.level[chunk.level];
    const BlockPoint at(chunk, level, a.points, threadIdx.x);
    const float weight = at.exists ? static_cast<const float*>(a.weights)[at.place] : 0.0f;
    const std::uint32_t left = std::uint32_t(level.height * level.width) - chunk.first;
    Four<float>* const zeros =
        reinterpret_cast<Four<float>*>(static_cast<float*>(a.sides) + 8 * (at.place - threadIdx.x));
    each<2>(2, [&](int i) {
        const std::uint32_t quad = i * threads + threadIdx.x;
        if (quad < 2 * left) zeros[quad] = {};
    });
    const Chosen counting(weight > 0.0f, reinterpret_cast<std::uint32_t*>(shared + 12 * threads));
    float sum = 0.0f;
    if (counting.count > 0) {
        // 2. Of the points that count: the distance of a side, and DFL.
        const float* const projection = static_cast<const float*>(a.projection);
        counting.each_side([&](std::uint32_t local, int side) {
            const BlockPoint of(chunk, level, a.points, local);
            float cell[2];
            of.cell(float(a.offset), cell);
            const float corner = static_cast<const float*>(a.boxes)[4 * of.place + side] / float(level.stride);
            const float bin = target_bin<float>(side % 2 ? cell[1] : cell[0], corner, side, projection[0],
                                                projection[1] - projection[0], a.bins);
            const BoxSide<float> read = read_box_side<0, float>(of.row_of<T>(level, chunk.image, side), a.bins,
                                                                scale_of(a.scales, chunk.level), projection, bin);
            distances[side * threads + local] = read.distance;
            bins[side * threads + local] = bin;
            dfls[side * threads + local] = read.dfl;
        });
        __syncthreads();

        // 3. The thread has its point to itself: GIoU, and what backward needs.
        float losses[2] = {};
        if (weight > 0.0f) {
            float cell[2], target[4], distance[4], gradients[4], dfl = 0.0f;
            at.cell(float(a.offset), cell);
            for (int i = 0; i < 4; ++i) {
                target[i] = static_cast<const float*>(a.boxes)[4 * at.place + i] / float(level.stride);
                distance[i] = distances[i * threads + threadIdx.x];
                dfl += dfls[i * threads + threadIdx.x];
            }
            losses[0] = weight * box_loss_of<float>(cell, distance, target, weight, gradients);
            losses[1] = weight * dfl;
            for (int i = 0; i < 4; ++i) {
                const Two<float> pair{{gradients[i], bins[i * threads + threadIdx.x]}};
                static_cast<Two<float>*>(a.sides)[4 * at.place + i] = pair;
            }
        }
        sum = block_sums<threads>(losses, shared);
    }

    // 4. The block's partial sums, and the sums of all.
    if (threadIdx.x < 2) static_cast<float*>(a.workspace)[2 * blockIdx.x + threadIdx.x] = sum;
    if (ends_last(counter, shared)) write_losses(a, blocks.count, reinterpret_cast<double*>(shared));
}

// Where the last block has no counter to know itself by, or there is none.
GFLV2_KERNEL(threads) box_loss_sums(GFLV2_CONSTANT BoxLossArguments a, std::uint32_t blocks) {
    GFLV2_SHARED_MEMORY(double, scratch);
    write_losses(a, blocks, scratch);
}

template <class T> void run(const BoxLossArguments& a, void* stream) {
    const BlockTable blocks = block_table(a.levels, a.batch, threads);
    std::uint32_t* const counter = blocks.count > 0 ? launch_counter(stream) : nullptr;
    if (blocks.count > 0)
        launch(box_loss_kernel<T>, blocks.count, threads, shared_words * sizeof(float), stream, a, blocks, counter);
    if (!counter) launch(box_loss_sums, 1, threads, 2 * threads * sizeof(double), stream, a, blocks.count);
}

// The gradient of both losses for the logits, from what forward has saved; see NothingAdded.
struct BoxLossGradient {
    static constexpr bool any = true;
    using Row = BoxRowGradient<float>;
    SavedBoxLoss box;

    // Only points with a weight count.
    __device__ bool adds(std::int64_t place) const { return static_cast<const float*>(box.weights)[place] > 0.0f; }

    template <int BINS, class Exponentials>
    __device__ Row row(std::int64_t place, int side, int bins, const Exponentials& exponentials, float inverse) const {
        float moment = 0.0f;
        each<BINS>(bins, [&](int b) { moment = multiply_add(exponentials(b), projection(b), moment); });
        const float* const from = static_cast<const float*>(box.sides) + 8 * place + 2 * side;
        const float weight = static_cast<const float*>(box.weights)[place];
        return {factor(0) * from[0], factor(1) * weight, from[1], moment * inverse};
    }

    __device__ float at(const Row& row, int bin, float probability) const {
        return row.at(bin, probability, projection(bin));
    }

private:
    __device__ float projection(int bin) const { return static_cast<const float*>(box.projection)[bin]; }

    // ∂L/∂(weighted sum of a loss).
    __device__ float factor(int loss) const {
        const double grad = double(*static_cast<const float*>(box.grad_losses[loss]));
        return float(grad * box.factors[loss] / double(static_cast<const float*>(box.normalisers)[1]));
    }
};

}  // namespace

void box_loss_forward(const BoxLossArguments& a, Place place) {
    run_as("gfl_loss", a.dtype, place, [&](auto zero) { run<decltype(zero)>(a, place.stream); });
}

void box_loss_backward(const BoxLossBackwardArguments& a, Place place) {
    run_dgqp_backward("gfl_loss", a.dgqp, BoxLossGradient{a.box}, place);
}

std::size_t box_loss_forward_workspace(const LevelTable& levels, std::int64_t batch) {
    return 2 * std::size_t(block_table(levels, batch, threads).count) * sizeof(float);
}
std::size_t box_loss_backward_workspace(const LevelTable& levels, std::int64_t batch, int features, int hidden) {
    return dgqp_workspace(levels, batch, features, hidden);
}

}  // namespace gflv2::cuda
