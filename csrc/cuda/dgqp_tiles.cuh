// `dgqp` of the published head on CUDA, both ways: k = 4, the mean, a predictor of up to 64 units, R = 17 or 33. Its
// products of matrices run on the tensor cores (gflv2/mma.hpp).
//
// A block of four warps goes through its points 64 at a time, a tile. For the rows lane = two points, warp = side; for
// the predictor warp = 16 points. Where bins lie side by side (STAGED), 16-bit rows of 17 travel through shared memory;
// others have the kernels of dgqp.cuh.
#pragma once

#include <cstdint>

#include "cuda/dgqp.cuh"
#include "cuda/row_pairs.cuh"
#include "cuda/staged_pairs.cuh"
#include "gflv2/api/dgqp.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/mma.hpp"

namespace gflv2::cuda::tiles {

constexpr unsigned tile = 2 * warp;            // points
constexpr int per_side = pair_ranks + 1;       // statistics: the largest, and their mean
constexpr int statistics = 4 * per_side;       // of a point
constexpr int steps = 3;                       // of eight statistics; the one after the last is 1, for the bias
constexpr int columns = 8 * steps;             // statistics, 1, and zeros
constexpr int feature_pitch = tile + 8;        // words: see FloatFactor
constexpr int unit_tiles = units_at_once / 8;  // of eight units

// The same for gflv2/dgqp.hpp.
GFLV2_HD Statistics kept() { return {pair_ranks, true, false}; }

// Is a call one of these?
template <class T, int BINS, bool STAGED> constexpr bool compiled = BINS > 0 && (!STAGED || sizeof(T) * BINS == 34);
inline bool fit(const DgqpArguments& a) {
    return a.topk == pair_ranks && a.mean && !a.variance && a.hidden > 0 && a.hidden <= units_at_once;
}

// Shared memory, in words: features (24, 72) of a tile, the first layer as fragments.
constexpr int feature_words = columns * feature_pitch;
constexpr int first_layer_words = unit_tiles * steps * mma::lanes * 4;

// W1 and the bias of unit u, times `sign`.
__device__ inline float first_weight(const DgqpArguments& a, int unit, int column, float sign) {
    if (unit >= a.hidden || column > statistics) return 0.0f;
    const float* const from = column < statistics ? static_cast<const float*>(a.weight1) + unit * statistics + column
                                                  : static_cast<const float*>(a.bias1) + unit;
    return sign * *from;
}

// The first layer's fragments: (unit tile, step, lane).
__device__ inline void stage_first_layer(const DgqpArguments& a, float sign, mma::RightParts* to) {
    GFLV2_UNROLL_NEVER
    for (int i = threadIdx.x; i < unit_tiles * steps * mma::lanes; i += threads) {
        const int lane = i % mma::lanes, step = i / mma::lanes % steps, unit = i / (mma::lanes * steps) * 8 + lane / 4;
        const int column = 8 * step + lane % 4;
        to[i] = mma::right_parts(first_weight(a, unit, column, sign), first_weight(a, unit, column + 4, sign));
    }
}

// The rows of the features behind the statistics.
__device__ inline void stage_constants(float* features) {
    for (int i = threadIdx.x; i < (columns - statistics) * feature_pitch; i += threads)
        features[statistics * feature_pitch + i] = i < feature_pitch ? 1.0f : 0.0f;
}

// Unit tiles with a unit, and one more where it makes the number even.
GFLV2_HD int used_unit_tiles(const DgqpArguments& a) { return (a.hidden + 15) / 16 * 2; }

// The layer's sums for the warp's 16 points: use(unit tile, sums).
template <class Use>
__device__ inline void first_layer(const DgqpArguments& a, const float* features, const mma::RightParts* weights,
                                   const Use& use) {
    const mma::FloatFactor<steps> left(features + threadIdx.x / warp * 16, feature_pitch);
    // Two tiles at a time: the terms of one sum wait for each other.
    GFLV2_UNROLL_NEVER
    for (int first = 0; first < used_unit_tiles(a); first += 2)
        each<2>(2, [&](int i) {
            float sums[4] = {};
            left.multiply(
                sums, [&](int step, int lane) { return weights[((first + i) * steps + step) * mma::lanes + lane]; });
            use(first + i, sums);
        });
}

// The block's points, and the thread's place among them.
struct Walk {
    Chunk chunk;
    std::uint32_t points, end;
    int lane, group;

    __device__ Walk(const DgqpArguments& a, const BlockTable& blocks)
        : chunk(chunk_of(blocks, a.levels.count, blockIdx.x, block_points)),
          points(std::uint32_t(a.levels.level[chunk.level].height * a.levels.level[chunk.level].width)),
          end(points - chunk.first < block_points ? points : chunk.first + block_points), lane(threadIdx.x % warp),
          group(threadIdx.x / warp) {}

    // Of the tile at `from`: how many exist, and the thread's two. STAGED: half a tile apart, so that the rows of a
    // warp's lanes fall on different banks. A point past the end has the place of another one.
    __device__ std::uint32_t count(std::uint32_t from) const { return points - from < tile ? points - from : tile; }
    template <bool STAGED> __device__ ThreadPoints<2> own(std::uint32_t from) const {
        if constexpr (!STAGED) return place_of<2>(from + 2 * lane, points);
        ThreadPoints<2> place;
        each<2>(2, [&](int k) {
            const std::uint32_t point = from + lane + k * warp;
            place.valid[k] = point < points;
            place.point[k] = place.valid[k] ? point : points - 1;
        });
        return place;
    }
};

// In which column of the features the `local`-th point of a tile is.
template <bool STAGED> __device__ inline unsigned column_of(unsigned local) {
    return STAGED ? local % warp * 2 + local / warp : local;
}

// The places of the thread's points in a tile.
struct InTile {
    std::uint32_t local[2];
    __device__ InTile(const ThreadPoints<2>& place, std::uint32_t from) {
        each<2>(2, [&](int k) { local[k] = place.point[k] - from; });
    }
};

// The thread's rows of the tile at `from`. STAGED: all threads of the block have them read by way of `staged`.
template <class T, int BINS, bool STAGED>
__device__ inline void read_rows(RowPair<T, BINS>& rows, const Walk& walk, const Level& level, const T* side,
                                 const ThreadPoints<2>& place, std::uint32_t from, bool pairs, float scale, T* staged) {
    if constexpr (STAGED) {
        tile_to_shared<BINS, tile>(level, walk.chunk.image, from, walk.count(from), staged);
        __syncthreads();
        StagedPairs<T, BINS>{staged, walk.group}.read(rows.z, InTile(place, from).local);
    } else {
        read_pairs<T, BINS>(rows.z, level, side, place, pairs);
    }
    rows.form(scale);
}

// The statistics of the thread's rows: put(j, first, second).
template <class Rows, class Put>
__device__ inline void statistics_of_pair(const Rows& rows, float (&terms)[2][pair_ranks], const Put& put) {
    float value[2][per_side];
    each<2>(0, [&](int row) {
        rows.ranks(row, terms[row]);
        statistics_of<pair_ranks, float>(terms[row], rows.softmax[row].inverse, kept(),
                                         [&](int j, float own) { value[row][j] = own; });
    });
    each<per_side>(0, [&](int j) { put(j, value[0][j], value[1][j]); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

constexpr int quality_pitch = feature_pitch;
constexpr int forward_words = feature_words + first_layer_words + units_at_once + 4 * quality_pitch;
// A staged tile of T behind them.
template <class T, int BINS> constexpr int staged_words = tile * 4 * BINS * sizeof(T) / sizeof(float);

// The second number of GFLV2_KERNEL is the most that leaves enough registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000
constexpr int forward_blocks = 6;
#else
constexpr int forward_blocks = 5;
#endif

template <class T, int BINS, bool STAGED>
GFLV2_KERNEL(threads, (sizeof(T) == 2 && BINS == 17 ? forward_blocks : 3))
dgqp_forward_tiles(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(float, memory);
    float* const features = memory;
    mma::RightParts* const weights = reinterpret_cast<mma::RightParts*>(memory + feature_words);
    float* const second = memory + feature_words + first_layer_words;
    float* const qualities = second + units_at_once;

    // 1. The block's points, the thread's lane and warp; the predictor's weights.
    const Walk walk(a, blocks);
    const Chunk& chunk = walk.chunk;
    const Level& level = a.levels.level[chunk.level];
    const int lane = walk.lane, group = walk.group;
    const float scale = scale_of(a.scales, chunk.level);
    const std::int64_t first_place = chunk.image * a.points + level.first_point;
    const T* const side =
        static_cast<const T*>(level.logits) + chunk.image * level.strides.image + group * level.strides.side;
    const bool pairs = in_pairs<T>(level, level.strides, level.logits);
    stage_first_layer(a, 1.0f, weights);
    stage_constants(features);
    if (threadIdx.x < units_at_once)
        second[threadIdx.x] = int(threadIdx.x) < a.hidden ? static_cast<const float*>(a.weight2)[threadIdx.x] : 0.0f;

    GFLV2_UNROLL_NEVER
    for (std::uint32_t from = chunk.first; from < walk.end; from += tile) {
        // 2. Statistics of the thread's rows, to shared memory.
        {
            RowPair<T, BINS> rows;
            read_rows<T, BINS, STAGED>(rows, walk, level, side, walk.own<STAGED>(from), from, pairs, scale,
                                       reinterpret_cast<T*>(memory + forward_words));
            float terms[2][pair_ranks];
            statistics_of_pair(rows, terms, [&](int j, float x, float y) {
                *reinterpret_cast<Two<float>*>(features + (group * per_side + j) * feature_pitch + 2 * lane) = {{x, y}};
            });
        }
        __syncthreads();

        // 3. The predictor: a thread has two units of every eight, for two points.
        float quality[2] = {};
        first_layer(a, features, weights, [&](int unit_tile, const float (&sums)[4]) {
            const Two<float> weight = *reinterpret_cast<const Two<float>*>(second + unit_tile * 8 + lane % 4 * 2);
            each<4>(0, [&](int i) {
                quality[i / 2] = multiply_add(ptx::max_nan(sums[i], 0.0f), weight.value[i % 2], quality[i / 2]);
            });
        });
        each<2>(0, [&](int i) { qualities[lane % 4 * quality_pitch + group * 16 + i * 8 + lane / 4] = quality[i]; });
        __syncthreads();

        // 4. The units' sum.
        if (threadIdx.x < tile && from + threadIdx.x < walk.end) {
            float sum = static_cast<const float*>(a.bias2)[0];
            each<4>(0, [&](int i) { sum += qualities[i * quality_pitch + column_of<STAGED>(threadIdx.x)]; });
            static_cast<float*>(a.out)[first_place + from + threadIdx.x] = sum;
        }
    }
}

}  // namespace gflv2::cuda::tiles
