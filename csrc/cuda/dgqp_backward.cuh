// The backward pass of `dgqp` on CUDA, one pass over the logits, as a template over what an operation adds to their
// gradient. The sums of the predictor's gradients are those of csrc/cpu/predictor.hpp.
//
// It forms, for 64 units at a time, a_h = g where unit h is active, and from it ∂L/∂F of the thread's own row, which
// waits in registers, and the block's sums D_hf = Σ a_h·F_f. One partial sum per block goes to the workspace; dgqp.cu
// adds them up.
#pragma once

#include "cuda/block_sum.cuh"
#include "cuda/dgqp.cuh"
#include "cuda/dgqp_tiles_backward.cuh"

namespace gflv2::cuda {

// `dgqp` alone. An operation with a gradient of its own for the logits has any = true, and
//   bool adds(place)                                          for a point, at its place in (B, A)
//   Row row<BINS>(place, side, bins, exponentials, inverse)   what its row needs: P_b = exponentials(b)·inverse
//   float at(row, bin, probability)                           ∂L/∂t_b
struct NothingAdded {
    static constexpr bool any = false;
    struct Row {};
};

// The second number of GFLV2_KERNEL as in dgqp.cu.
template <class T, int BINS, int TOPK, bool STAGED, class Added>
GFLV2_KERNEL(threads, (BINS > 17 || (Added::any && !STAGED) ? 2 : 3))
dgqp_backward_kernel(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT Added added, GFLV2_CONSTANT BlockTable blocks) {
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
    const float scale = scale_of(a.scales, chunk.level);
    const bool few_units = a.hidden <= units_at_once;
    if (a.hidden > 0 && few_units) weights.stage(0, true);
    float* const partial =
        static_cast<float*>(a.workspace) + blockIdx.x * predictor_width(feature_count, a.grad_weight1 ? a.hidden : 0);
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
        // With an added gradient 33 of them do not fit the registers.
        typename ExponentialsFor<(Added::any && BINS > 17 && !STAGED) ? 0 : BINS>::type exponentials;
        float top[places<TOPK>], gradient[places<TOPK> + 2];  // gradient: first ∂L/∂F of the side, then ∂L/∂T
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
            each_rank<RANKS>(per_side, [&](int j) { gradient[j] = valid ? own[j * pitch] : 0.0f; });
        } else {
            float* const to = features + group * per_side * pitch + lane;
            statistics_of<TOPK, float>(top, peak.inverse, statistics,
                                       [&](int j, float value) { to[j * pitch] = value; });
            const float upstream = valid ? static_cast<const float*>(a.grad_out)[place] : 0.0f;
            if (group == 0) upstream_sum += upstream;
            each_rank<RANKS>(per_side, [&](int j) { gradient[j] = 0.0f; });

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
                        each_rank<RANKS>(per_side, [&](int j) {
                            gradient[j] = multiply_add(value, weights.product(first, u, group, j), gradient[j]);
                        });
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
                                float* const sum = partial + std::int64_t(first + unit_pair + k) * (feature_count + 1) +
                                                   sum_side * per_side + slice;
                                each_rank<SLICE>(count, [&](int j) {
                                    sum[j] = (started ? sum[j] : 0.0f) + (k ? products[1][j] : products[0][j]);
                                });
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
                                float* const sum =
                                    partial + std::int64_t(first + unit_pair + k) * (feature_count + 1) + feature_count;
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
                if constexpr (TOPK == 0) return gradient[j];
                each<RANKS>(0, [&](int i) { value = i == j ? gradient[i] : value; });
                return value;
            }, gradient);
            T* to = nullptr;
            if (!STAGED && a.grad_logits)
                to = static_cast<T*>(level.grad_logits) + chunk.image * level.grad_strides.image +
                     group * level.grad_strides.side + point_offset(level, level.grad_strides, point);
            float* const shared_row = tile + (4 * lane + group) * pitch_of(BINS);
            const bool scaled = valid && a.grad_scales;
            const auto exponential_of = [&](int bin) { return exponentials.get(row, bin, scale, peak.largest); };
            typename Added::Row added_row{};
            bool adds = false;
            if constexpr (Added::any) {
                adds = valid && added.adds(place);
                if (adds) added_row = added.template row<BINS>(place, group, a.bins, exponential_of, peak.inverse);
            }
            softmax_top_backward<BINS, TOPK, float>(row, a.bins, scale, a.topk, exponentials, peak, top, gradient, sum,
                                                    [&](int bin, float value) {
                if constexpr (Added::any) {
                    if (adds) value += added.at(added_row, bin, exponential_of(bin) * peak.inverse);
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
                    each_rank<SLICE>(
                        per_side, [&](int j) { sum[sum_side * per_side + j] = k ? products[1][j] : products[0][j]; });
                if (sum_side == 0) sum[feature_count] = k ? unit_sums[1] : unit_sums[0];
            }
        }
        const float sum = block_sum<threads>(upstream_sum, memory);
        if (threadIdx.x == 0) partial[std::int64_t(a.hidden) * (feature_count + 1)] = sum;
    }
    if (a.grad_scales) {
        const float sum = block_sum<threads>(scale_sum, memory);
        float* const sums = static_cast<float*>(a.workspace) +
                            blocks.count * predictor_width(feature_count, a.grad_weight1 ? a.hidden : 0);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    }
}

// Second stage: the gradients of the predictor and the scales from the partial sums of all blocks.
void launch_dgqp_sums(const DgqpArguments& a, const BlockTable& blocks, void* stream);

template <class Added>
void run_dgqp_backward(const char* operation, const DgqpArguments& a, const Added& added, Place place) {
    const BlockTable blocks = block_table(a.levels, a.batch, block_points);
    choose_dgqp(operation, a, true, place, [&](auto zero, auto bins, auto topk, auto staged) {
        constexpr int BINS = decltype(bins)::value, TOPK = decltype(topk)::value;
        constexpr bool STAGED = decltype(staged)::value;
        if constexpr (tiles::compiled<decltype(zero), BINS, STAGED>) {
            if (tiles::fit(a)) {
                if (blocks.count > 0)
                    launch(tiles::dgqp_backward_tiles<decltype(zero), BINS, STAGED, Added>, blocks.count, threads,
                           tiles::backward_words * sizeof(float), place.stream, a, added, blocks);
                return launch_dgqp_sums(a, blocks, place.stream);
            }
        }
        const SharedPlan<TOPK> plan(a.features(), a.hidden > 0, true, STAGED ? int(threads) * pitch_of(BINS) : 0);
        if (blocks.count > 0)
            launch(dgqp_backward_kernel<decltype(zero), BINS, TOPK, STAGED, Added>, blocks.count, threads,
                   plan.words() * sizeof(float), place.stream, a, added, blocks);
        launch_dgqp_sums(a, blocks, place.stream);
    });
}

}  // namespace gflv2::cuda
