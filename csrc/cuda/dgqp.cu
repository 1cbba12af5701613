// `dgqp` and `dgqp_statistics` on CUDA: one pass over the logits each way, all levels and images in one launch. The arithmetic
// of a row is gflv2/dgqp.hpp's; the sums of the predictor's gradients are those of csrc/cpu/predictor.hpp.
//
// A block goes through its points 32 at a time. Lane = point; warp = side for the rows, then a quarter of the hidden units for
// the predictor, whose weights the block keeps in shared memory. Logits are read lane by lane (coalesced for NCHW, correct
// for any strides), or by way of shared memory where the bins are adjacent (rows.cuh).
//
// Backward forms, for 64 units at a time, a_h = g where unit h is active, and from it ∂L/∂F of the thread's own row, which
// waits in registers, and the block's sums D_hf = Σ a_h·F_f. One partial sum per block goes to the workspace; a second kernel
// adds them up in double, in an order that depends on the shapes alone.

#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/dgqp.hpp"
#include "gflv2/gfl_loss.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

constexpr int chunks = 8;                                // of 32 points, per block
constexpr unsigned block_points = chunks * warp;
constexpr int units_at_once = 64;                        // the published predictor has 64
constexpr int units_per_thread = units_at_once / 4;      // forward: a quarter of them per warp
constexpr int pitch = warp + 1;                          // words between rows of 32 points in shared memory
constexpr unsigned add_threads = 256;                    // second stage

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
        : features(0), active(features + feature_count * pitch), forward(active + (predictor && gradient ? units_at_once * pitch : 0)),
          backward(forward + (predictor ? (TOPK > 0 ? feature_count : 0) * units_at_once + 2 * units_at_once : 0)),
          rows(backward + (predictor && gradient && TOPK > 0 ? units_at_once * 4 * side_pitch<TOPK> : 0)), words_(rows + row_words) {
        if (words_ < int(threads)) words_ = threads;  // the block's sums
    }
    GFLV2_HD int words() const { return words_; }

private:
    int words_;
};

__device__ inline float scale_of(const DgqpArguments& a, int level) {
    return a.scales ? static_cast<const float*>(a.scales)[level] : 1.0f;
}

// Workspace: (blocks, hidden·(F + 1) + 1): for each unit D_h0 … D_h(F−1) and Σ a_h, then Σ g; then (blocks,) for the scales.
GFLV2_HD std::int64_t predictor_width(int features, int hidden) { return hidden > 0 ? std::int64_t(hidden) * (features + 1) + 1 : 0; }

// The predictor's weights as a block uses them, 64 units at a time; units beyond the last have weight 0. With TOPK they lie in
// shared memory: (F, 64) for forward, bias and second layer (64,) each, and w2·W1 (64, 4, side_pitch) for backward. For k > 8
// they would not fit, and the first layer's are read from global memory.
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
                    backward[(u * 4 + side) * side_pitch<TOPK> + f - side * per_side] = exists ? weight * weight2[first_unit + u] : 0.0f;
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
__device__ inline void first_layer(const Weights<TOPK>& weights, const float* features, int first_unit, int unit, float (&sums)[units_per_thread]) {
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
__device__ inline auto row_of(const Level& level, const Chunk& chunk, std::uint32_t point, int side, const float* tile) {
    if constexpr (STAGED) {
        return tile + (4 * (point - chunk.first) + side) * pitch_of(BINS);
    } else {
        const T* at = static_cast<const T*>(level.logits) + chunk.image * level.strides.image + side * level.strides.side;
        return MemoryRow<T>{at + point_offset(level, level.strides, point), level.strides.bin};
    }
}

// Its exponentials and ranks. A constant number of logits is read once, into registers, all loads ahead of their use.
template <int BINS, int TOPK, class Row, class Exponentials>
__device__ inline Peak<float> read_row(const DgqpArguments& a, const Row& row, float scale, Exponentials& exponentials, float* top) {
    if constexpr (BINS > 0) {
        float z[BINS];
        each<BINS>(BINS, [&](int b) { z[b] = row[b]; });
        return softmax_top<BINS, TOPK, float>(z, BINS, scale, a.topk, exponentials, top);
    } else {
        return softmax_top<0, TOPK, float>(row, a.bins, scale, a.topk, exponentials, top);
    }
}

// The second number of GFLV2_KERNEL, here and below, is the most that leaves enough registers: left alone, ptxas goes for one
// more block and spills a few words.
template <class T, int BINS, int TOPK, bool STAGED>
GFLV2_KERNEL(threads, (TOPK > 0 ? 7 : 6)) dgqp_forward_kernel(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT BlockTable blocks) {
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
    const float scale = scale_of(a, chunk.level);
    if (a.hidden > 0 && a.hidden <= units_at_once) weights.stage(0, false);

    for (; chunk.first < end; chunk.first += warp) {
        const std::uint32_t left = end - chunk.first, used = left < warp ? left : warp;
        const std::uint32_t point = chunk.first + (lane < int(used) ? lane : used - 1);  // past the end: the last one once more
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
            const Peak<float> peak = read_row<BINS, TOPK>(a, row_of<T, BINS, STAGED>(level, chunk, point, group, tile), scale, none, top);
            float* const to = features + group * per_side * pitch + lane;
            statistics_of<TOPK, float>(top, peak.inverse, statistics, [&](int j, float value) { to[j * pitch] = value; });
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
                quality = multiply_add(value < 0.0f ? 0.0f : value, weights.second()[unit + i], quality);  // a NaN stays one
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

// ∂L/∂(loss) of the two box losses; the factors are 0 where there are none.
__device__ inline void box_factors(const BoxLossSlopes& box, float* to) {
    to[0] = to[1] = 0.0f;
    if (!box.slopes) return;
    const float* const grad = static_cast<const float*>(box.grad_losses);
    const double normaliser = double(*static_cast<const float*>(box.normaliser));
    for (int i = 0; i < 2; ++i) to[i] = float(double(grad[i]) * box.factors[i] / normaliser);
}

// What the box losses add to the thread's row, whose distance is given.
__device__ inline BoxRowSlope<float> box_slope(const BoxLossSlopes& box, const float* factors, std::int64_t place, int side, float weight, float distance) {
    const float* const from = static_cast<const float*>(box.slopes) + 8 * place + 2 * side;
    return {factors[0] * from[0], factors[1] * weight, from[1], distance};
}

template <class T, int BINS, int TOPK, bool STAGED, bool BOXES>
GFLV2_KERNEL(threads, (BINS > 17 || (BOXES && !STAGED) ? 2 : 3)) dgqp_backward_kernel(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(float, memory);
    constexpr int SLICE = side_block<TOPK>, RANKS = TOPK > 0 ? TOPK + 2 : 0;
    const Statistics statistics{a.topk, a.mean, a.variance};
    const int per_side = statistics.count(), feature_count = 4 * per_side;
    const SharedPlan<TOPK> plan(feature_count, a.hidden > 0, true, STAGED ? threads * pitch_of(BINS) : 0);
    float* const features = memory + plan.features;
    float* const active = memory + plan.active;
    float* const tile = memory + plan.rows;
    const Weights<TOPK> weights{a, memory + plan.forward, memory + plan.backward, feature_count, per_side};

    // 1. The block's points, the thread's lane and warp, and its share of the block's sums: two units and one side.
    Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, block_points);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t points = std::uint32_t(level.height * level.width);
    const std::uint32_t end = points - chunk.first < block_points ? points : chunk.first + block_points;
    const int lane = threadIdx.x % warp, group = threadIdx.x / warp;
    const int unit_pair = threadIdx.x / 4 * 2, sum_side = threadIdx.x % 4;
    const float scale = scale_of(a, chunk.level);
    const bool few_units = a.hidden <= units_at_once;
    if (a.hidden > 0 && few_units) weights.stage(0, true);
    float* const partial = static_cast<float*>(a.workspace) + blockIdx.x * predictor_width(feature_count, a.grad_weight1 ? a.hidden : 0);
    float products[2][SLICE] = {}, unit_sums[2] = {}, upstream_sum = 0.0f, scale_sum = 0.0f;
    bool started = false;

    for (; chunk.first < end; chunk.first += warp) {
        const std::uint32_t left = end - chunk.first, used = left < warp ? left : warp;
        const bool valid = lane < int(used);
        const std::uint32_t point = chunk.first + (valid ? lane : used - 1);
        const std::int64_t place = chunk.image * a.points + level.first_point + point;

        // 2. Statistics of the thread's row, as in forward; its exponentials and ranks wait for step 5.
        __syncthreads();
        if constexpr (STAGED) {
            rows_to_shared<BINS, T>(level, chunk.image, chunk.first, 4 * used, BINS, tile);
            __syncthreads();
        }
        const auto row = row_of<T, BINS, STAGED>(level, chunk, point, group, tile);
        // With the box losses 33 of them do not fit the registers.
        typename ExponentialsFor<(BOXES && BINS > 17 && !STAGED) ? 0 : BINS>::type exponentials;
        float top[places<TOPK>], slope[places<TOPK> + 2];  // slope: first ∂L/∂F of the side, then ∂L/∂T
        const Peak<float> peak = read_row<BINS, TOPK>(a, row, scale, exponentials, top);

        if (a.hidden == 0) {
            // 3. ∂L/∂F is given: whole lines of it; or it is 0.
            const float* const given = static_cast<const float*>(a.grad_out);
            const float* const from = given ? given + (place - (point - chunk.first)) * feature_count : nullptr;
            for (std::uint32_t i = threadIdx.x; i < used * feature_count; i += threads) {
                const std::uint32_t p = i / feature_count;
                features[(i - p * feature_count) * pitch + p] = from ? from[i] : 0.0f;
            }
            __syncthreads();
            const float* own = features + group * per_side * pitch + lane;
            each_rank<RANKS>(per_side, [&](int j) { slope[j] = valid ? own[j * pitch] : 0.0f; });
        } else {
            float* const to = features + group * per_side * pitch + lane;
            statistics_of<TOPK, float>(top, peak.inverse, statistics, [&](int j, float value) { to[j * pitch] = value; });
            const float upstream = valid ? static_cast<const float*>(a.grad_out)[place] : 0.0f;
            if (group == 0) upstream_sum += upstream;
            each_rank<RANKS>(per_side, [&](int j) { slope[j] = 0.0f; });

            for (int first = 0; first < a.hidden; first += units_at_once) {
                // 4a. Which units are active: a quarter of them per warp.
                __syncthreads();
                if (!few_units) {
                    weights.stage(first, true);
                    __syncthreads();
                }
                const int unit = group * units_per_thread;
                float sums[units_per_thread];
                first_layer(weights, features, first, unit, sums);
                each<units_per_thread>(0, [&](int i) {
                    active[(unit + i) * pitch + lane] = sums[i] + weights.bias()[unit + i] > 0.0f ? upstream : 0.0f;
                });
                __syncthreads();

                // 4b. ∂L/∂F of the thread's row.
                if (a.grad_logits || a.grad_scales) {
                    const int units = a.hidden - first < units_at_once ? a.hidden - first : units_at_once;
                    GFLV2_UNROLL_TWICE
                    for (int u = 0; u < units; ++u) {
                        const float value = active[u * pitch + lane];
                        each_rank<RANKS>(per_side, [&](int j) { slope[j] = multiply_add(value, weights.product(first, u, group, j), slope[j]); });
                    }
                }

                // 4c. The block's sums: two units and one side per thread, over the 32 points.
                if (a.grad_weight1) {
                    const float* const left_row = active + unit_pair * pitch;
                    for (int slice = 0; slice < per_side; slice += SLICE) {
                        const int count = per_side - slice < SLICE ? per_side - slice : SLICE;
                        const bool keep = few_units && per_side <= SLICE;  // in registers, until the last chunk
                        if (!keep) each<SLICE>(0, [&](int j) { products[0][j] = products[1][j] = 0.0f; });
                        const float* const right = features + (sum_side * per_side + slice) * pitch;
                        GFLV2_UNROLL_TWICE
                        for (unsigned p = 0; p < warp; ++p) {
                            const float x = left_row[p], y = left_row[pitch + p];
                            each_rank<SLICE>(count, [&](int j) {
                                const float feature = right[j * pitch + p];
                                products[0][j] = multiply_add(x, feature, products[0][j]);
                                products[1][j] = multiply_add(y, feature, products[1][j]);
                            });
                        }
                        if (!keep) {
                            for (int k = 0; k < 2; ++k) {
                                if (first + unit_pair + k >= a.hidden) continue;
                                float* const sum = partial + std::int64_t(first + unit_pair + k) * (feature_count + 1) + sum_side * per_side + slice;
                                each_rank<SLICE>(count, [&](int j) { sum[j] = (started ? sum[j] : 0.0f) + (k ? products[1][j] : products[0][j]); });
                            }
                        }
                    }
                    if (sum_side == 0) {
                        if (!few_units) unit_sums[0] = unit_sums[1] = 0.0f;
                        GFLV2_UNROLL_TWICE
                        for (unsigned p = 0; p < warp; ++p) {
                            unit_sums[0] += left_row[p];
                            unit_sums[1] += left_row[pitch + p];
                        }
                        if (!few_units) {
                            for (int k = 0; k < 2; ++k) {
                                if (first + unit_pair + k >= a.hidden) continue;
                                float* const sum = partial + std::int64_t(first + unit_pair + k) * (feature_count + 1) + feature_count;
                                *sum = (started ? *sum : 0.0f) + (k ? unit_sums[1] : unit_sums[0]);
                            }
                        }
                    }
                }
            }
            started = true;
        }

        // 5. From ∂L/∂F to the logits.
        if (a.grad_logits || a.grad_scales) {
            const float sum = statistics_backward<TOPK, float>(top, peak.inverse, statistics, [&](int j) {
                float value = 0.0f;  // an index known at run time only must not address registers
                if constexpr (TOPK == 0) return slope[j];
                each<RANKS>(0, [&](int i) { value = i == j ? slope[i] : value; });
                return value;
            }, slope);
            T* to = nullptr;
            if (!STAGED && a.grad_logits)
                to = static_cast<T*>(level.grad_logits) + chunk.image * level.grad_strides.image + group * level.grad_strides.side +
                     point_offset(level, level.grad_strides, point);
            float* const shared_row = tile + (4 * lane + group) * pitch_of(BINS);
            const bool scaled = valid && a.grad_scales;
            BoxRowSlope<float> box{};
            bool has_box = false;
            const float* const projection = static_cast<const float*>(a.box.projection);
            if constexpr (BOXES) {
                const float weight = valid ? static_cast<const float*>(a.box.weights)[place] : 0.0f;
                has_box = weight > 0.0f;
                if (has_box) {
                    float moment = 0.0f, factors[2];
                    each<BINS>(a.bins, [&](int b) { moment = multiply_add(exponentials.get(row, b, scale, peak.largest), projection[b], moment); });
                    box_factors(a.box, factors);
                    box = box_slope(a.box, factors, place, group, weight, moment * peak.inverse);
                }
            }
            softmax_top_backward<BINS, TOPK, float>(row, a.bins, scale, a.topk, exponentials, peak, top, slope, sum, [&](int bin, float value) {
                if constexpr (BOXES) {
                    if (has_box) value += box.at(bin, exponentials.get(row, bin, scale, peak.largest) * peak.inverse, projection[bin]);
                }
                // The logit is read once more: kept since step 2, it would cost a register.
                if (scaled) scale_sum = multiply_add(row[bin], value, scale_sum);
                if constexpr (STAGED) {
                    if (valid) shared_row[bin] = value * scale;
                } else {
                    if (valid && a.grad_logits) to[bin * level.grad_strides.bin] = narrow<T>(value * scale);
                }
            });
            if constexpr (STAGED) {
                __syncthreads();
                if (a.grad_logits) rows_from_shared<BINS, T>(level, chunk.image, chunk.first, 4 * used, BINS, tile);
            }
        }
    }

    // 6. The block's partial sums.
    if (a.grad_weight1) {
        if (few_units) {
            for (int k = 0; k < 2; ++k) {
                if (unit_pair + k >= a.hidden) continue;
                float* const sum = partial + std::int64_t(unit_pair + k) * (feature_count + 1);
                if (per_side <= SLICE)
                    each_rank<SLICE>(per_side, [&](int j) { sum[sum_side * per_side + j] = k ? products[1][j] : products[0][j]; });
                if (sum_side == 0) sum[feature_count] = k ? unit_sums[1] : unit_sums[0];
            }
        }
        const float sum = block_sum<threads>(upstream_sum, memory);
        if (threadIdx.x == 0) partial[std::int64_t(a.hidden) * (feature_count + 1)] = sum;
    }
    if (a.grad_scales) {
        const float sum = block_sum<threads>(scale_sum, memory);
        float* const sums = static_cast<float*>(a.workspace) + blocks.count * predictor_width(feature_count, a.grad_weight1 ? a.hidden : 0);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Second stage

// Sum over the blocks of up to 32 neighbouring columns, in double; column c of the tile is `total[c]` after it.
__device__ inline void sum_columns(const float* from, std::int64_t width, std::uint32_t rows, int columns, double* scratch, double* total) {
    const int column = threadIdx.x % warp, first = threadIdx.x / warp;
    double sum = 0;
    if (column < columns)
        for (std::uint32_t row = first; row < rows; row += add_threads / warp) sum += from[row * width + column];
    __syncthreads();
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (first == 0) {
        for (unsigned i = 1; i < add_threads / warp; ++i) sum += scratch[i * warp + column];
        total[column] = sum;
    }
    __syncthreads();
}

// One block per hidden unit, one for the second bias, one per level for its scale.
GFLV2_KERNEL(add_threads) dgqp_sums(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(double, scratch);  // (add_threads + warp,)
    double* const total = scratch + add_threads;
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
            const int count = features + 1 - f < int(warp) ? features + 1 - f : int(warp);
            sum_columns(partial + std::int64_t(item) * (features + 1) + f, width, blocks.count, count, scratch, total);
            if (threadIdx.x == 0) {
                for (int i = 0; i < count; ++i) {
                    const bool bias = f + i == features;
                    second += total[i] * (bias ? static_cast<const float*>(a.bias1)[item] : weight1[f + i]);
                    float* const to = bias ? static_cast<float*>(a.grad_bias1) + item : static_cast<float*>(a.grad_weight1) + std::int64_t(item) * features + f + i;
                    *to = float(weight2 * total[i]);
                }
            }
            __syncthreads();
        }
        if (threadIdx.x == 0) static_cast<float*>(a.grad_weight2)[item] = float(second);
        return;
    }

    // 2. The second bias: Σ g.
    if (hidden > 0 && item == hidden) {
        sum_columns(partial + width - 1, width, blocks.count, 1, scratch, total);
        if (threadIdx.x == 0) *static_cast<float*>(a.grad_bias2) = float(total[0]);
        return;
    }

    // 3. A level's scale.
    const int level = item - (hidden > 0 ? hidden + 1 : 0);
    const float* sums = partial + blocks.count * width;
    sum_columns(sums + blocks.first[level], 1, blocks.first[level + 1] - blocks.first[level], 1, scratch, total);
    if (threadIdx.x == 0) static_cast<float*>(a.grad_scales)[level] = float(total[0]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

bool bins_adjacent(const DgqpArguments& a, bool gradient) {
    for (int l = 0; l < a.levels.count; ++l) {
        const Level& level = a.levels.level[l];
        if (level.strides.bin != 1 || (gradient && level.grad_strides.bin != 1)) return false;
    }
    return true;
}

template <class T, int BINS, int TOPK, bool STAGED> void launch_main(const DgqpArguments& a, bool gradient, const BlockTable& blocks, void* stream) {
    const SharedPlan<TOPK> plan(a.features(), a.hidden > 0, gradient, STAGED ? int(threads) * pitch_of(BINS) : 0);
    const auto backward = a.box.slopes ? dgqp_backward_kernel<T, BINS, TOPK, STAGED, true> : dgqp_backward_kernel<T, BINS, TOPK, STAGED, false>;
    const auto kernel = gradient ? backward : dgqp_forward_kernel<T, BINS, TOPK, STAGED>;
    if (blocks.count > 0) launch(kernel, blocks.count, threads, plan.words() * sizeof(float), stream, a, blocks);
}

template <class T, int BINS, int TOPK> void run(const DgqpArguments& a, bool gradient, void* stream) {
    const BlockTable blocks = block_table(a.levels, a.batch, block_points);
    if (BINS > 0 && bins_adjacent(a, gradient && a.grad_logits)) {
        launch_main<T, BINS, TOPK, (BINS > 0)>(a, gradient, blocks, stream);
    } else {
        launch_main<T, BINS, TOPK, false>(a, gradient, blocks, stream);
    }
    if (!gradient) return;
    const unsigned sums = (a.grad_weight1 ? a.hidden + 1 : 0) + (a.grad_scales ? a.levels.count : 0);
    if (sums > 0) launch(dgqp_sums, sums, add_threads, (add_threads + warp) * sizeof(double), stream, a, blocks);
}

template <class T> void run(const DgqpArguments& a, bool gradient, void* stream) {
    if (a.topk == 4 && a.bins == 17) return run<T, 17, 4>(a, gradient, stream);
    if (a.topk == 4 && a.bins == 33) return run<T, 33, 4>(a, gradient, stream);
    if (a.topk <= 8) return run<T, 0, 8>(a, gradient, stream);
    run<T, 0, 0>(a, gradient, stream);
}

void run(const DgqpArguments& a, bool gradient, Place place) {
    const DeviceGuard guard(place.device);
    switch (a.dtype) {
        case Dtype::float32: return run<float>(a, gradient, place.stream);
        case Dtype::float16: return run<half>(a, gradient, place.stream);
        case Dtype::bfloat16: return run<bfloat16>(a, gradient, place.stream);
        case Dtype::float64: break;
    }
    throw std::invalid_argument("dgqp: the CUDA kernels take float32, float16 and bfloat16");
}

}  // namespace

void dgqp_forward(const DgqpArguments& a, Place place) { run(a, false, place); }
void dgqp_backward(const DgqpArguments& a, Place place) { run(a, true, place); }

std::size_t dgqp_workspace(const LevelTable& levels, std::int64_t batch, int features, int hidden) {
    return block_table(levels, batch, block_points).count * std::size_t(predictor_width(features, hidden) + 1) * sizeof(float);
}

}  // namespace gflv2::cuda
