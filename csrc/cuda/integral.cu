// `integral` on CUDA: forward and backward, one pass over the logits each, all levels and images in one launch. The
// arithmetic is gflv2/integral.hpp's, one row (one side of one point) at a time.
//
// Two ways to read the logits:
//   strided  lane = point, warp = side: coalesced for NCHW, correct for any strides. 16-bit logits are read two points
//   at a
//            time where the layout allows it (a warp then moves 128 bytes per load, as with float32).
//   rows     where the bins are adjacent (channels_last, rows (M, 4, R)): the block's rows travel through shared
//            memory, so that global memory sees whole lines and each thread still owns one row.

#include "cuda/block_sum.cuh"
#include "cuda/dtypes.cuh"
#include "cuda/level_rows.cuh"
#include "cuda/points.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/integral.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/points.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {
namespace {

// Points per thread of the strided kernels.
template <class T, int BINS> constexpr int pack = sizeof(T) == 2 && BINS == 17 ? 2 : 1;

// ---------------------------------------------------------------------------------------------------------------------
// What both kinds share

__device__ inline float stride_of(const IntegralArguments& a, const Level& level, std::uint32_t point) {
    return a.row_strides ? static_cast<const float*>(a.row_strides)[point] : float(level.stride);
}

// Distance → coordinate of the box's side in pixels, where boxes are wanted.
__device__ inline float decoded(const IntegralArguments& a, const Level& level, std::uint32_t point, int side,
                                float distance) {
    if (!a.decode) return distance;
    const float stride = stride_of(a, level, point);
    float where;
    if (a.row_points) {
        where = static_cast<const float*>(a.row_points)[2 * std::int64_t(point) + side % 2];
    } else {
        const std::uint32_t width = std::uint32_t(level.width), y = point / width;
        where = cell_point(side % 2 ? y : point - y * width, float(a.offset), stride);
    }
    return box_side(where, distance, stride, side);
}

// ∂L/∂(distance) of one row; `row` is its index in (B, A, 4).
__device__ inline float upstream_of(const IntegralArguments& a, const Level& level, std::uint32_t point, int side,
                                    std::int64_t row) {
    const float gradient = static_cast<const float*>(a.grad_out)[row];
    return a.decode ? gradient * box_side_derivative(stride_of(a, level, point), side) : gradient;
}

// Workspace: a partial sum per block for the scale, then, bin by bin, one per block for the projection.
__device__ inline float* scale_partial(const IntegralArguments& a) { return static_cast<float*>(a.workspace); }
__device__ inline float* projection_partial(const IntegralArguments& a, const BlockTable& blocks, int bin) {
    return static_cast<float*>(a.workspace) + (1 + std::int64_t(bin)) * blocks.count;
}

// ---------------------------------------------------------------------------------------------------------------------
// strided

template <class T, int BINS, int PACK>
__device__ inline void load_rows(float (&z)[PACK][BINS > 0 ? BINS : 1], const Level& level, const T* at,
                                 const ThreadPoints<PACK>& place) {
    if constexpr (PACK == 2) {
        if (paired<T>(level, level.strides, level.logits)) {
            at += place.point[0];
            each<BINS>(BINS, [&](int b) { load_pair(at + b * level.strides.bin, z[0][b], z[1][b]); });
            return;
        }
    }
    each<PACK>(PACK, [&](int k) {
        const T* row = at + point_offset(level, level.strides, place.point[k]);
        each<BINS>(BINS, [&](int b) { z[k][b] = widen(row[b * level.strides.bin]); });
    });
}

template <class T, int BINS, int PACK>
__device__ inline void store_rows(const float (&gradient)[PACK][BINS], const Level& level, T* at,
                                  const ThreadPoints<PACK>& place) {
    if constexpr (PACK == 2) {
        if (paired<T>(level, level.grad_strides, level.grad_logits)) {
            at += place.point[0];
            if (place.valid[0])
                each<BINS>(BINS,
                           [&](int b) { store_pair(at + b * level.grad_strides.bin, gradient[0][b], gradient[1][b]); });
            return;
        }
    }
    each<PACK>(PACK, [&](int k) {
        T* row = at + point_offset(level, level.grad_strides, place.point[k]);
        if (place.valid[k])
            each<BINS>(BINS, [&](int b) { row[b * level.grad_strides.bin] = narrow<T>(gradient[k][b]); });
    });
}

template <class T, int BINS>
GFLV2_KERNEL(threads)
integral_forward_strided(GFLV2_CONSTANT IntegralArguments a, GFLV2_CONSTANT BlockTable blocks) {
    constexpr int PACK = pack<T, BINS>;
    GFLV2_SHARED_MEMORY(float, result);  // (warp·PACK, 4)

    // 1. The block's chunk of points, the thread's side and points.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, warp * PACK);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t points = std::uint32_t(level.height * level.width);
    const int side = threadIdx.x / warp;
    const std::uint32_t local = threadIdx.x % warp * PACK;
    const ThreadPoints<PACK> place = place_of<PACK>(chunk.first + local, points);
    const T* at = static_cast<const T*>(level.logits) + chunk.image * level.strides.image + side * level.strides.side;
    const float scale = scale_of(a.scales, chunk.level);
    const float* projection = static_cast<const float*>(a.projection);

    // 2. Its rows.
    float distance[PACK];
    if constexpr (BINS > 0) {
        float z[PACK][BINS];
        load_rows<T, BINS, PACK>(z, level, at, place);
        each<PACK>(PACK, [&](int k) { distance[k] = distance_of<BINS, float>(z[k], BINS, scale, projection); });
    } else {
        const MemoryRow<T> row{at + point_offset(level, level.strides, place.point[0]), level.strides.bin};
        distance[0] = distance_of<0, float>(row, a.bins, scale, projection);
    }

    // 3. The four sides of a point meet in shared memory, so that the result is written in whole lines.
    each<PACK>(PACK,
               [&](int k) { result[(local + k) * 4 + side] = decoded(a, level, place.point[k], side, distance[k]); });
    __syncthreads();
    const std::uint32_t left = points - chunk.first, used = 4 * (left < warp * PACK ? left : warp * PACK);
    float* out = static_cast<float*>(a.out) + 4 * (chunk.image * a.points + level.first_point + chunk.first);
    for (std::uint32_t i = threadIdx.x; i < used; i += threads) out[i] = result[i];
}

template <class T, int BINS, bool PROJECTION>
GFLV2_KERNEL(threads)
integral_backward_strided(GFLV2_CONSTANT IntegralArguments a, GFLV2_CONSTANT BlockTable blocks) {
    constexpr int PACK = pack<T, BINS>;
    GFLV2_SHARED_MEMORY(float,
                        scratch);  // (threads,); with PROJECTION (R, threads + 1), the odd pitch against bank conflicts

    // 1. The block's chunk of points, the thread's side and points.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, warp * PACK);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t points = std::uint32_t(level.height * level.width);
    const int side = threadIdx.x / warp;
    const ThreadPoints<PACK> place = place_of<PACK>(chunk.first + threadIdx.x % warp * PACK, points);
    const T* at = static_cast<const T*>(level.logits) + chunk.image * level.strides.image + side * level.strides.side;
    T* grad =
        static_cast<T*>(level.grad_logits) + chunk.image * level.grad_strides.image + side * level.grad_strides.side;
    const float scale = scale_of(a.scales, chunk.level);
    const float* projection = static_cast<const float*>(a.projection);
    const std::int64_t first_row = chunk.image * a.points + level.first_point;

    // 2. Its rows: forward again, then the gradients. Points past the end have upstream 0 and so add nothing to a sum.
    float upstream[PACK];
    each<PACK>(PACK, [&](int k) {
        const std::int64_t row = 4 * (first_row + place.point[k]) + side;
        upstream[k] = place.valid[k] ? upstream_of(a, level, place.point[k], side, row) : 0.0f;
    });
    typename ExponentialsFor<BINS>::type exponentials;
    float scale_sum = 0;
    const auto project = [&](int bin, float weight) { scratch[bin * (threads + 1) + threadIdx.x] = weight; };
    if constexpr (BINS > 0) {
        float z[PACK][BINS], gradient[PACK][BINS];
        load_rows<T, BINS, PACK>(z, level, at, place);
        each<PACK>(PACK, [&](int k) {
            const Softmax<float> softmax = softmax_moment<BINS, float>(z[k], BINS, scale, projection, exponentials);
            scale_sum += softmax_moment_backward<BINS, PROJECTION, float>(
                z[k], BINS, scale, projection, exponentials, softmax, upstream[k],
                [&](int bin, float value) { gradient[k][bin] = value; }, project);
        });
        if (a.grad_logits) store_rows<T, BINS, PACK>(gradient, level, grad, place);
    } else {
        const MemoryRow<T> row{at + point_offset(level, level.strides, place.point[0]), level.strides.bin};
        T* const to = grad + point_offset(level, level.grad_strides, place.point[0]);
        const bool wanted = a.grad_logits && place.valid[0];
        const Softmax<float> softmax = softmax_moment<0, float>(row, a.bins, scale, projection, exponentials);
        scale_sum = softmax_moment_backward<0, PROJECTION, float>(row, a.bins, scale, projection, exponentials, softmax,
                                                                  upstream[0], [&](int bin, float value) {
            if (wanted) to[bin * level.grad_strides.bin] = narrow<T>(value);
        }, project);
    }

    // 3. The block's partial sums.
    if constexpr (PROJECTION) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < a.bins; bin += threads) {
            float sum = 0;
            for (unsigned i = 0; i < threads; ++i) sum += scratch[bin * (threads + 1) + i];
            projection_partial(a, blocks, bin)[blockIdx.x] = sum;
        }
    }
    if (a.grad_scales) {
        const float sum = block_sum<threads>(scale_sum, scratch);
        if (threadIdx.x == 0) scale_partial(a)[blockIdx.x] = sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// rows

template <class T, int BINS>
GFLV2_KERNEL(threads)
integral_forward_rows(GFLV2_CONSTANT IntegralArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(float, tile);  // (threads, pitch)
    const int bins = BINS > 0 ? BINS : a.bins;

    // 1. The block's rows to shared memory.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, warp);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t left = std::uint32_t(level.height * level.width) - chunk.first,
                        rows = 4 * (left < warp ? left : warp);
    rows_to_shared<BINS, T>(level, chunk.image, chunk.first, rows, a.bins, tile);
    __syncthreads();

    // 2. One row a thread.
    if (threadIdx.x < rows) {
        const float distance =
            distance_of<BINS, float>(tile + threadIdx.x * pitch_of(bins), bins, scale_of(a.scales, chunk.level),
                                     static_cast<const float*>(a.projection));
        const std::int64_t first_row = 4 * (chunk.image * a.points + level.first_point + chunk.first);
        static_cast<float*>(a.out)[first_row + threadIdx.x] =
            decoded(a, level, chunk.first + threadIdx.x / 4, threadIdx.x % 4, distance);
    }
}

template <class T, int BINS>
GFLV2_KERNEL(threads)
integral_backward_rows(GFLV2_CONSTANT IntegralArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(float, tile);  // (threads, pitch), then the scratch of the sum
    const int bins = BINS > 0 ? BINS : a.bins;

    // 1. The block's rows to shared memory.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, warp);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t left = std::uint32_t(level.height * level.width) - chunk.first,
                        rows = 4 * (left < warp ? left : warp);
    rows_to_shared<BINS, T>(level, chunk.image, chunk.first, rows, a.bins, tile);
    __syncthreads();

    // 2. One row a thread; its gradients take the place of its logits.
    float scale_sum = 0;
    if (threadIdx.x < rows) {
        float* const row = tile + threadIdx.x * pitch_of(bins);
        const float scale = scale_of(a.scales, chunk.level);
        const float* projection = static_cast<const float*>(a.projection);
        const std::int64_t first_row = 4 * (chunk.image * a.points + level.first_point + chunk.first);
        const float upstream =
            upstream_of(a, level, chunk.first + threadIdx.x / 4, threadIdx.x % 4, first_row + threadIdx.x);
        typename ExponentialsFor<BINS>::type exponentials;
        const Softmax<float> softmax = softmax_moment<BINS, float>(row, bins, scale, projection, exponentials);
        scale_sum = softmax_moment_backward<BINS, false, float>(
            row, bins, scale, projection, exponentials, softmax, upstream,
            [&](int bin, float gradient) { row[bin] = gradient; }, [](int, float) {});
    }
    __syncthreads();

    // 3. Back to global memory.
    if (a.grad_logits) rows_from_shared<BINS, T>(level, chunk.image, chunk.first, rows, a.bins, tile);

    // 4. The block's partial sum.
    if (a.grad_scales) {
        const float sum = block_sum<threads>(scale_sum, tile);
        if (threadIdx.x == 0) scale_partial(a)[blockIdx.x] = sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Second stage of the sums: one block per level, then one per bin.

GFLV2_KERNEL(reduce_threads) integral_sums(GFLV2_CONSTANT IntegralArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(double, scratch);
    const int levels = a.grad_scales ? a.levels.count : 0;
    const int s = blockIdx.x;
    const bool of_scale = s < levels;
    const float* const from = of_scale ? scale_partial(a) + blocks.first[s] : projection_partial(a, blocks, s - levels);
    const std::uint32_t count = of_scale ? blocks.first[s + 1] - blocks.first[s] : blocks.count;
    const float sum = float(sums_of_partials<1>(from, count, scratch));
    if (threadIdx.x == 0)
        *(of_scale ? static_cast<float*>(a.grad_scales) + s : static_cast<float*>(a.grad_projection) + (s - levels)) =
            sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

template <class T, int BINS> void forward(const IntegralArguments& a, void* stream) {
    const bool rows = bins_adjacent(a.levels, false);
    const unsigned points = rows ? warp : warp * pack<T, BINS>;
    const BlockTable blocks = block_table(a.levels, a.batch, points);
    if (blocks.count == 0) return;
    if (rows) {
        launch(integral_forward_rows<T, BINS>, blocks.count, threads, threads * pitch_of(a.bins) * sizeof(float),
               stream, a, blocks);
    } else {
        launch(integral_forward_strided<T, BINS>, blocks.count, threads, points * 4 * sizeof(float), stream, a, blocks);
    }
}

template <class T, int BINS> void backward(const IntegralArguments& a, void* stream) {
    const bool rows = bins_adjacent(a.levels, a.grad_logits) && !a.grad_projection;
    // A projection that needs a gradient is rare: the generic kernel serves every number of bins.
    const bool generic = BINS == 0 || a.grad_projection;
    const BlockTable blocks = block_table(a.levels, a.batch, rows || generic ? warp : warp * pack<T, BINS>);
    if (blocks.count > 0) {
        if (a.grad_projection) {
            launch(integral_backward_strided<T, 0, true>, blocks.count, threads, a.bins * (threads + 1) * sizeof(float),
                   stream, a, blocks);
        } else if (rows) {
            launch(integral_backward_rows<T, BINS>, blocks.count, threads, threads * pitch_of(a.bins) * sizeof(float),
                   stream, a, blocks);
        } else {
            launch(integral_backward_strided<T, BINS, false>, blocks.count, threads, threads * sizeof(float), stream, a,
                   blocks);
        }
    }
    const unsigned sums = (a.grad_scales ? a.levels.count : 0) + (a.grad_projection ? a.bins : 0);
    if (sums > 0) launch(integral_sums, sums, reduce_threads, reduce_threads * sizeof(double), stream, a, blocks);
}

}  // namespace

void integral_forward(const IntegralArguments& a, Place place) {
    run_as("integral", a.dtype, place, [&](auto zero) {
        with_bins(a.bins, [&](auto bins) { forward<decltype(zero), decltype(bins)::value>(a, place.stream); });
    });
}
void integral_backward(const IntegralArguments& a, Place place) {
    run_as("integral", a.dtype, place, [&](auto zero) {
        with_bins(a.bins, [&](auto bins) { backward<decltype(zero), decltype(bins)::value>(a, place.stream); });
    });
}

std::size_t integral_workspace(const LevelTable& levels, std::int64_t batch, int projection_bins) {
    return block_table(levels, batch, warp).count * std::size_t(1 + projection_bins) * sizeof(float);
}

}  // namespace gflv2::cuda
