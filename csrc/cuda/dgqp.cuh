// What both ways of `dgqp` share on CUDA: the plan of a block's shared memory, the predictor's weights there, the
// thread's row, and the choice of an instance.
//
// A block goes through its points 32 at a time. Lane = point; warp = side for the rows, then a quarter of the hidden
// units for the predictor, whose weights the block keeps in shared memory. Logits are read lane by lane (coalesced for
// NCHW, correct for any strides), or by way of shared memory where the bins are adjacent (level_rows.cuh).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/dtypes.cuh"
#include "cuda/level_rows.cuh"
#include "gflv2/api/dgqp.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/dgqp.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {

constexpr int chunks = 8;  // of 32 points, per block
constexpr unsigned block_points = chunks * warp;
constexpr int units_at_once = 64;                    // the published predictor has 64
constexpr int units_per_thread = units_at_once / 4;  // forward: a quarter of them per warp
constexpr int pitch = warp + 1;                      // words between rows of 32 points in shared memory

// Ranks in registers, or 0: in local memory, for k > 8.
template <int TOPK> constexpr int places = TOPK > 0 ? TOPK : max_bins;
// Statistics of a side that a thread holds in registers at a time.
template <int TOPK> constexpr int side_block = (TOPK > 0 ? TOPK : 8) + 2;
// Words per side in the second copy of the weights.
template <int TOPK> constexpr int side_pitch = (side_block<TOPK> + 3) / 4 * 4;

// Shared memory of a block, in words.
template <int TOPK> struct SharedPlan {
    int features, active, forward, backward, rows;

    GFLV2_HD SharedPlan(int feature_count, bool predictor, bool gradient, int row_words)
        : features(0), active(features + feature_count * pitch),
          forward(active + (predictor && gradient ? units_at_once * pitch : 0)),
          backward(forward + (predictor ? (TOPK > 0 ? feature_count : 0) * units_at_once + 2 * units_at_once : 0)),
          rows(backward + (predictor && gradient && TOPK > 0 ? units_at_once * 4 * side_pitch<TOPK> : 0)),
          words_(rows + row_words) {
        if (words_ < int(threads)) words_ = threads;  // the block's sums
    }
    GFLV2_HD int words() const { return words_; }

private:
    int words_;
};

// Workspace: (blocks, hidden·(F + 1) + 1): for each unit D_h0 … D_h(F−1) and Σ a_h, then Σ g; then (blocks,) for the
// scales.
GFLV2_HD std::int64_t predictor_width(int features, int hidden) {
    return hidden > 0 ? std::int64_t(hidden) * (features + 1) + 1 : 0;
}

// The predictor's weights as a block uses them, 64 units at a time; units beyond the last have weight 0. With TOPK they
// lie in shared memory: (F, 64) for forward, bias and second layer (64,) each, and w2·W1 (64, 4, side_pitch) for
// backward. For k > 8 they would not fit, and the first layer's are read from global memory.
template <int TOPK> struct Weights {
    const DgqpArguments& a;
    float* const forward;
    float* const backward;
    const int features, per_side;

    __device__ float* bias() const { return forward + (TOPK > 0 ? features * units_at_once : 0); }
    __device__ float* second() const { return bias() + units_at_once; }

    __device__ void stage(int first_unit, bool gradient) const {
        const float* weight1 = static_cast<const float*>(a.weight1);
        const float* weight2 = static_cast<const float*>(a.weight2);
        for (int u = threadIdx.x; u < units_at_once; u += threads) {
            const bool exists = first_unit + u < a.hidden;
            bias()[u] = exists ? static_cast<const float*>(a.bias1)[first_unit + u] : 0.0f;
            second()[u] = exists ? weight2[first_unit + u] : 0.0f;
        }
        if constexpr (TOPK > 0) {
            for (int i = threadIdx.x; i < units_at_once * features; i += threads) {
                const int u = i / features, f = i - u * features;
                const bool exists = first_unit + u < a.hidden;
                const float weight = exists ? weight1[std::int64_t(first_unit) * features + i] : 0.0f;
                forward[f * units_at_once + u] = weight;
                if (gradient) {
                    const int side = f / per_side;
                    backward[(u * 4 + side) * side_pitch<TOPK> + f - side * per_side] =
                        exists ? weight * weight2[first_unit + u] : 0.0f;
                }
            }
        }
    }

    // W1 of the thread's units, sixteen from `unit` on.
    __device__ void read(int first_unit, int unit, int f, float (&weights)[units_per_thread]) const {
        if constexpr (TOPK > 0) {
            const Four<float>* from = reinterpret_cast<const Four<float>*>(forward + f * units_at_once + unit);
            each<units_per_thread / 4>(0, [&](int q) {
                const Four<float> four = from[q];
                each<4>(0, [&](int i) { weights[4 * q + i] = four.value[i]; });
            });
        } else {
            each<units_per_thread>(0, [&](int i) {
                const int u = first_unit + unit + i;
                weights[i] = u < a.hidden ? static_cast<const float*>(a.weight1)[std::int64_t(u) * features + f] : 0.0f;
            });
        }
    }

    // w2·W1 of one unit and statistic.
    __device__ float product(int first_unit, int u, int side, int place) const {
        if constexpr (TOPK > 0) return backward[(u * 4 + side) * side_pitch<TOPK> + place];
        const int unit = first_unit + u;
        if (unit >= a.hidden) return 0.0f;
        return static_cast<const float*>(a.weight2)[unit] *
               static_cast<const float*>(a.weight1)[std::int64_t(unit) * features + side * per_side + place];
    }
};

// The first layer without its bias: sixteen units, from `unit` of the 64 on, of the thread's point.
template <int TOPK>
__device__ inline void first_layer(const Weights<TOPK>& weights, const float* features, int first_unit, int unit,
                                   float (&sums)[units_per_thread]) {
    each<units_per_thread>(0, [&](int i) { sums[i] = 0.0f; });
    GFLV2_UNROLL_TWICE
    for (int f = 0; f < weights.features; ++f) {
        const float feature = features[f * pitch + threadIdx.x % warp];
        float column[units_per_thread];
        weights.read(first_unit, unit, f, column);
        each<units_per_thread>(0, [&](int i) { sums[i] = multiply_add(feature, column[i], sums[i]); });
    }
}

// The thread's row where it lies: in shared memory (STAGED), or in global memory.
template <class T, int BINS, bool STAGED>
__device__ inline auto row_of(const Level& level, const Chunk& chunk, std::uint32_t point, int side,
                              const float* tile) {
    if constexpr (STAGED) {
        return tile + (4 * (point - chunk.first) + side) * pitch_of(BINS);
    } else {
        const T* at =
            static_cast<const T*>(level.logits) + chunk.image * level.strides.image + side * level.strides.side;
        return MemoryRow<T>{at + point_offset(level, level.strides, point), level.strides.bin};
    }
}

// Its exponentials and ranks. A constant number of logits is read once, into registers, all loads ahead of their use.
template <int BINS, int TOPK, class Row, class Exponentials>
__device__ inline Peak<float> read_row(const DgqpArguments& a, const Row& row, float scale, Exponentials& exponentials,
                                       float* top) {
    if constexpr (BINS > 0) {
        float z[BINS];
        each<BINS>(BINS, [&](int b) { z[b] = row[b]; });
        return softmax_top<BINS, TOPK, float>(z, BINS, scale, a.topk, exponentials, top);
    } else {
        return softmax_top<0, TOPK, float>(row, a.bins, scale, a.topk, exponentials, top);
    }
}

// Calls start(zero, bins, topk, staged), constants, for the instance of a call: the type of `zero` is that of the
// logits.
template <class Start>
void choose_dgqp(const char* operation, const DgqpArguments& a, bool gradient, Place place, const Start& start) {
    const auto choose = [&](auto zero, auto bins, auto topk) {
        if constexpr (decltype(bins)::value > 0) {
            if (bins_adjacent(a.levels, gradient && a.grad_logits)) return start(zero, bins, topk, std::true_type{});
        }
        start(zero, bins, topk, std::false_type{});
    };
    run_as(operation, a.dtype, place, [&](auto zero) {
        if (a.topk == 4 && a.bins == 17) return choose(zero, constant<17>, constant<4>);
        if (a.topk == 4 && a.bins == 33) return choose(zero, constant<33>, constant<4>);
        if (a.topk <= 8) return choose(zero, constant<0>, constant<8>);
        choose(zero, constant<0>, constant<0>);
    });
}

}  // namespace gflv2::cuda
