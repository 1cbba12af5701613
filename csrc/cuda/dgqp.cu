// `dgqp` and `dgqp_statistics` on CUDA: one pass over the logits each way, all levels and images in one launch. The
// arithmetic of a row is gflv2/dgqp.hpp's. Sums over blocks are formed in double, in an order that depends on the
// shapes alone.

#include "cuda/dgqp.cuh"
#include "cuda/dgqp_backward.cuh"
#include "cuda/dgqp_tiles.cuh"
#include "cuda/dgqp_tiles_backward.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/dgqp.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

// The second number of GFLV2_KERNEL, here and below, is the most that leaves enough registers: left alone, ptxas goes
// for one more block and spills a few words.
template <class T, int BINS, int TOPK, bool STAGED>
GFLV2_KERNEL(threads, (TOPK > 0 ? 7 : 6))
dgqp_forward_kernel(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(float, memory);
    const Statistics statistics{a.topk, a.mean, a.variance};
    const int per_side = statistics.count(), feature_count = 4 * per_side;
    const SharedPlan<TOPK> plan(feature_count, a.hidden > 0, false, STAGED ? threads * pitch_of(BINS) : 0);
    float* const features = memory + plan.features;
    float* const tile = memory + plan.rows;
    const Weights<TOPK> weights{a, memory + plan.forward, nullptr, feature_count, per_side};

    // 1. The block's points, the thread's lane and warp.
    Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, block_points);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t points = std::uint32_t(level.height * level.width);
    const std::uint32_t end = points - chunk.first < block_points ? points : chunk.first + block_points;
    const int lane = threadIdx.x % warp, group = threadIdx.x / warp;
    const float scale = scale_of(a.scales, chunk.level);
    if (a.hidden > 0 && a.hidden <= units_at_once) weights.stage(0, false);

    for (; chunk.first < end; chunk.first += warp) {
        const std::uint32_t left = end - chunk.first, used = left < warp ? left : warp;
        const std::uint32_t point =
            chunk.first + (lane < int(used) ? lane : used - 1);  // past the end: the last one once more
        const std::int64_t place = chunk.image * a.points + level.first_point;

        // 2. Statistics of the thread's row (warp = side), to shared memory.
        __syncthreads();
        if constexpr (STAGED) {
            rows_to_shared<BINS, T>(level, chunk.image, chunk.first, 4 * used, BINS, tile);
            __syncthreads();
        }
        {
            NoExponentials none;
            float top[places<TOPK>];
            const Peak<float> peak =
                read_row<BINS, TOPK>(a, row_of<T, BINS, STAGED>(level, chunk, point, group, tile), scale, none, top);
            float* const to = features + group * per_side * pitch + lane;
            statistics_of<TOPK, float>(top, peak.inverse, statistics,
                                       [&](int j, float value) { to[j * pitch] = value; });
        }
        __syncthreads();

        if (a.hidden == 0) {
            // 3. They are the result: whole lines of it.
            float* const out = static_cast<float*>(a.out) + (place + chunk.first) * feature_count;
            for (std::uint32_t i = threadIdx.x; i < used * feature_count; i += threads) {
                const std::uint32_t p = i / feature_count;
                out[i] = features[(i - p * feature_count) * pitch + p];
            }
            continue;
        }

        // 4. The predictor, a quarter of the units per warp.
        float quality = 0.0f;
        for (int first = 0; first < a.hidden; first += units_at_once) {
            if (a.hidden > units_at_once) {
                __syncthreads();
                weights.stage(first, false);
                __syncthreads();
            }
            const int unit = group * units_per_thread;
            float sums[units_per_thread];
            first_layer(weights, features, first, unit, sums);
            each<units_per_thread>(0, [&](int i) {
                const float value = sums[i] + weights.bias()[unit + i];
                quality =
                    multiply_add(value < 0.0f ? 0.0f : value, weights.second()[unit + i], quality);  // a NaN stays one
            });
        }

        // 5. The four quarters meet where the statistics were.
        __syncthreads();
        features[group * pitch + lane] = quality;
        __syncthreads();
        if (group == 0 && lane < int(used)) {
            float sum = static_cast<const float*>(a.bias2)[0];
            for (int i = 0; i < 4; ++i) sum += features[i * pitch + lane];
            static_cast<float*>(a.out)[place + point] = sum;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The second stage of backward

constexpr unsigned add_threads = 512, add_rows = add_threads / warp;

// Sum over the blocks of up to 32 neighbouring columns, in double: column c is what thread c returns. `scratch` has
// add_threads places.
__device__ inline double sum_columns(const float* from, std::int64_t width, std::uint32_t rows, int columns,
                                     double* scratch) {
    const int column = threadIdx.x % warp;
    double sum = 0;
    if (column < columns)
        read_all<16>(threadIdx.x / warp, rows, add_rows, [&](std::uint32_t row) { return from[row * width + column]; },
                     [&](float found) { sum += found; });
    __syncthreads();
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < warp)
        for (unsigned i = 1; i < add_rows; ++i) sum += scratch[i * warp + column];
    return sum;
}

// One block per hidden unit, one for the second bias, one per level for its scale.
GFLV2_KERNEL(add_threads) dgqp_sums(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(double, scratch);  // (add_threads,)
    const int features = 4 * Statistics{a.topk, a.mean, a.variance}.count(), hidden = a.grad_weight1 ? a.hidden : 0;
    const std::int64_t width = predictor_width(features, hidden);
    const float* partial = static_cast<const float*>(a.workspace);
    const int item = blockIdx.x;

    // 1. A unit: D_h and Σ a_h give the gradients of its row of W1, its bias and its weight in the second layer.
    if (item < hidden) {
        const float* weight1 = static_cast<const float*>(a.weight1) + std::int64_t(item) * features;
        const float weight2 = static_cast<const float*>(a.weight2)[item];
        double second = 0;
        for (int f = 0; f <= features; f += warp) {
            const int count = features + 1 - f < int(warp) ? features + 1 - f : int(warp), i = threadIdx.x;
            const double total =
                sum_columns(partial + std::int64_t(item) * (features + 1) + f, width, blocks.count, count, scratch);
            if (i < count) {
                const bool bias = f + i == features;
                float* const to = bias ? static_cast<float*>(a.grad_bias1) + item
                                       : static_cast<float*>(a.grad_weight1) + std::int64_t(item) * features + f + i;
                *to = float(weight2 * total);
                second += total * (bias ? static_cast<const float*>(a.bias1)[item] : weight1[f + i]);
            }
        }
        __syncthreads();
        if (threadIdx.x < warp) scratch[threadIdx.x] = second;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (unsigned i = 1; i < warp; ++i) second += scratch[i];
            static_cast<float*>(a.grad_weight2)[item] = float(second);
        }
        return;
    }

    // 2. The second bias: Σ g.
    if (hidden > 0 && item == hidden) {
        const double total = sum_columns(partial + width - 1, width, blocks.count, 1, scratch);
        if (threadIdx.x == 0) *static_cast<float*>(a.grad_bias2) = float(total);
        return;
    }

    // 3. A level's scale: one number a block.
    const int level = item - (hidden > 0 ? hidden + 1 : 0);
    const float* const sums = partial + blocks.count * width + blocks.first[level];
    double sum = 0;
    read_all<8>(threadIdx.x, blocks.first[level + 1] - blocks.first[level], add_threads,
                [&](std::uint32_t i) { return sums[i]; }, [&](float found) { sum += found; });
    sum = block_sum<add_threads>(sum, scratch);
    if (threadIdx.x == 0) static_cast<float*>(a.grad_scales)[level] = float(sum);
}

}  // namespace

void launch_dgqp_sums(const DgqpArguments& a, const BlockTable& blocks, void* stream) {
    const unsigned sums = (a.grad_weight1 ? a.hidden + 1 : 0) + (a.grad_scales ? a.levels.count : 0);
    if (sums > 0) launch(dgqp_sums, sums, add_threads, add_threads * sizeof(double), stream, a, blocks);
}

void dgqp_forward(const DgqpArguments& a, Place place) {
    const BlockTable blocks = block_table(a.levels, a.batch, block_points);
    choose_dgqp("dgqp", a, false, place, [&](auto zero, auto bins, auto topk, auto staged) {
        constexpr int BINS = decltype(bins)::value, TOPK = decltype(topk)::value;
        constexpr bool STAGED = decltype(staged)::value;
        if constexpr (tiles::compiled<decltype(zero), BINS, STAGED>) {
            if (tiles::fit(a)) {
                constexpr int words = tiles::forward_words + (STAGED ? tiles::staged_words<decltype(zero), BINS> : 0);
                if (blocks.count > 0)
                    launch(tiles::dgqp_forward_tiles<decltype(zero), BINS, STAGED>, blocks.count, threads,
                           words * sizeof(float), place.stream, a, blocks);
                return;
            }
        }
        const SharedPlan<TOPK> plan(a.features(), a.hidden > 0, false, STAGED ? int(threads) * pitch_of(BINS) : 0);
        if (blocks.count > 0)
            launch(dgqp_forward_kernel<decltype(zero), BINS, TOPK, STAGED>, blocks.count, threads,
                   plan.words() * sizeof(float), place.stream, a, blocks);
    });
}

void dgqp_backward(const DgqpArguments& a, Place place) { run_dgqp_backward("dgqp", a, NothingAdded{}, place); }

std::size_t dgqp_workspace(const LevelTable& levels, std::int64_t batch, int features, int hidden) {
    return block_table(levels, batch, block_points).count * std::size_t(predictor_width(features, hidden) + 1) *
           sizeof(float);
}

}  // namespace gflv2::cuda
