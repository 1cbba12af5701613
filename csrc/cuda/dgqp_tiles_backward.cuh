// The backward pass of dgqp_tiles.cuh, as a template over what an operation adds to the logits' gradient: NothingAdded
// of dgqp_backward.cuh tells what that is.
//
// With m_pu = 1 where unit u is active at point p, g_p = ∂L/∂quality:
//   ∂L/∂F_pf = g_p·Σ_u m_pu·(w2·W1)_uf        D_uf = Σ_p m_pu·(g·F)_pf
// m is exact in bfloat16, the other factor is a sum of three such numbers. D is a sum over the block's points; the
// column after the last statistic, where F is 1, holds Σ a_u.
#pragma once

#include "cuda/block_sum.cuh"
#include "cuda/dgqp_tiles.cuh"

namespace gflv2::cuda::tiles {

constexpr int feature_tiles = steps;  // of eight columns
constexpr int unit_steps = units_at_once / 16;
constexpr int point_steps = tile / 16;
constexpr int active_pitch = units_at_once + 8;  // halves: rows of 16 bytes on different banks
constexpr int upstream_pitch = tile / 2 + 8;     // words, of two points each

// Shared memory in words: features, which become ∂L/∂F without g; the first layer; w2·W1 as fragments (unit step,
// feature tile, part, lane); m (64 points, 64 units); g·F (3 parts, 24 columns, 32 pairs of points).
constexpr int back_words = unit_steps * feature_tiles * 3 * mma::lanes * 2;
constexpr int active_words = tile * active_pitch / 2;
constexpr int upstream_words = 3 * columns * upstream_pitch;
constexpr int backward_words = feature_words + first_layer_words + back_words + active_words + upstream_words;
static_assert(backward_words * sizeof(float) <= 48 * 1024, "what a block gets without asking for more");

__device__ inline void stage_back(const DgqpArguments& a, mma::Right* to) {
    GFLV2_UNROLL_NEVER
    for (int i = threadIdx.x; i < unit_steps * feature_tiles * mma::lanes; i += threads) {
        const int lane = i % mma::lanes, part = i / mma::lanes, column = part % feature_tiles * 8 + lane / 4;
        const auto product = [&](int row) {
            const int unit = part / feature_tiles * 16 + row;
            if (unit >= a.hidden || column >= statistics) return 0.0f;
            return static_cast<const float*>(a.weight2)[unit] *
                   static_cast<const float*>(a.weight1)[unit * statistics + column];
        };
        mma::ThreeParts parts[2];
        each<2>(0, [&](int k) {
            const int row = lane % 4 * 2 + k * 8;
            parts[k] = mma::three_parts(product(row), product(row + 1));
        });
        each<3>(0, [&](int j) { to[(part * 3 + j) * mma::lanes + lane] = {{parts[0].word[j], parts[1].word[j]}}; });
    }
}

// g·F of a column for the thread's pair of points.
__device__ inline void put_upstream(std::uint32_t* to, int column, float first, float second) {
    const mma::ThreeParts parts = mma::three_parts(first, second);
    each<3>(0, [&](int j) { to[(j * columns + column) * upstream_pitch + threadIdx.x % warp] = parts.word[j]; });
}

// high + low += left · right(feature tile, part, lane). Small terms have sums of their own: at the last place of a large
// sum, tensor cores would cut them off.
template <class GetLeft, class GetRight>
__device__ inline void multiply_parts(float (&high)[feature_tiles][4], float (&low)[feature_tiles][4],
                                      const GetLeft& left, const GetRight& right) {
    GFLV2_UNROLL_MMA
    for (int part = 2; part > 0; --part)
        each<feature_tiles>(
            0, [&](int f) { mma::multiply_bf16(low[f], left, [&](int lane) { return right(f, part, lane); }); });
    each<feature_tiles>(0,
                        [&](int f) { mma::multiply_bf16(high[f], left, [&](int lane) { return right(f, 0, lane); }); });
}

template <class T, int BINS, bool STAGED, class Added>
GFLV2_KERNEL(threads, (mma::native && sizeof(T) == 2 && BINS == 17 ? 3 : 2))
dgqp_backward_tiles(GFLV2_CONSTANT DgqpArguments a, GFLV2_CONSTANT Added added, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(float, memory);
    float* const features = memory;
    mma::RightParts* const weights = reinterpret_cast<mma::RightParts*>(memory + feature_words);
    mma::Right* const back = reinterpret_cast<mma::Right*>(memory + feature_words + first_layer_words);
    std::uint16_t* const active =
        reinterpret_cast<std::uint16_t*>(memory + feature_words + first_layer_words + back_words);
    std::uint32_t* const upstream = reinterpret_cast<std::uint32_t*>(active) + active_words;
    T* const staged = reinterpret_cast<T*>(active);  // the tile's logits before m, its gradients after it
    static_assert(!STAGED || staged_words<T, BINS> <= active_words);

    // 1. The block's points, the thread's lane and warp; the predictor's weights. The first layer's sums are formed
    // with the opposite sign: a unit is active where that of the sum is set.
    const Walk walk(a, blocks);
    const Chunk& chunk = walk.chunk;
    const Level& level = a.levels.level[chunk.level];
    const int lane = walk.lane, group = walk.group;
    const float scale = scale_of(a.scales, chunk.level);
    const std::int64_t first_place = chunk.image * a.points + level.first_point;
    const T* const side =
        static_cast<const T*>(level.logits) + chunk.image * level.strides.image + group * level.strides.side;
    const bool pairs = in_pairs<T>(level, level.strides, level.logits);
    const bool grad_pairs = in_pairs<T>(level, level.grad_strides, level.grad_logits);
    stage_first_layer(a, -1.0f, weights);
    stage_back(a, back);
    stage_constants(features);
    for (int i = threadIdx.x; i < 3 * (columns - statistics - 1) * upstream_pitch; i += threads) {
        const int rows = (columns - statistics - 1) * upstream_pitch;
        upstream[(i / rows * columns + statistics + 1) * upstream_pitch + i % rows] = 0;
    }
    float products[feature_tiles][4] = {}, low_products[feature_tiles][4] = {}, upstream_sum = 0.0f, scale_sum = 0.0f;

    GFLV2_UNROLL_NEVER
    for (std::uint32_t from = chunk.first; from < walk.end; from += tile) {
        // 2. Statistics of the thread's rows, as in forward, and times g.
        const ThreadPoints<2> place = walk.own<STAGED>(from);
        RowPair<T, BINS> rows;
        if constexpr (STAGED) __syncthreads();
        read_rows<T, BINS, STAGED>(rows, walk, level, side, place, from, pairs, scale, staged);
        float grad[2], terms[2][pair_ranks];
        each<2>(0, [&](int row) {
            grad[row] = place.valid[row] ? static_cast<const float*>(a.grad_out)[first_place + place.point[row]] : 0.0f;
        });
        float* const own = features + group * per_side * feature_pitch + 2 * lane;
        statistics_of_pair(rows, terms, [&](int j, float first, float second) {
            *reinterpret_cast<Two<float>*>(own + j * feature_pitch) = {{first, second}};
            put_upstream(upstream, group * per_side + j, grad[0] * first, grad[1] * second);
        });
        if (group == 0) {
            upstream_sum += grad[0] + grad[1];
            put_upstream(upstream, statistics, grad[0], grad[1]);
        }
        __syncthreads();

        // 3. Which units are active, for the warp's 16 points.
        first_layer(a, features, weights, [&](int unit_tile, const float (&sums)[4]) {
            each<2>(0, [&](int i) {
                const int at = (group * 16 + lane / 4 + 8 * i) * active_pitch + unit_tile * 8 + lane % 4 * 2;
                *reinterpret_cast<std::uint32_t*>(active + at) = mma::negative_pair(sums[2 * i], sums[2 * i + 1]);
            });
        });
        for (int i = used_unit_tiles(a) * 4 + lane % 4; i < units_at_once / 2; i += 4)
            each<2>(0, [&](int k) {
                const int at = (group * 16 + lane / 4 + 8 * k) * active_pitch + 2 * i;
                *reinterpret_cast<std::uint32_t*>(active + at) = 0;
            });
        __syncthreads();

        // 4. ∂L/∂F without g of the warp's points, where their features were.
        if (a.grad_logits || a.grad_scales) {
            float high[feature_tiles][4] = {}, low[feature_tiles][4] = {};
            GFLV2_UNROLL_TWICE
            for (int step = 0; step < unit_steps; ++step) {
                const mma::BinaryFactor<false> left(active + group * 16 * active_pitch + step * 16, active_pitch);
                multiply_parts(high, low, left, [&](int f, int part, int l) {
                    return back[((step * feature_tiles + f) * 3 + part) * mma::lanes + l];
                });
            }
            each<feature_tiles>(0, [&](int f) {
                each<4>(0, [&](int i) {
                    const int column = f * 8 + lane % 4 * 2 + i % 2;
                    if (column < statistics)
                        features[column * feature_pitch + group * 16 + i / 2 * 8 + lane / 4] = high[f][i] + low[f][i];
                });
            });
        }

        // 5. D of the warp's 16 units.
        if (a.grad_weight1) {
            GFLV2_UNROLL_TWICE
            for (int step = 0; step < point_steps; ++step) {
                const mma::BinaryFactor<true> left(active + step * 16 * active_pitch + group * 16, active_pitch);
                multiply_parts(products, low_products, left, [&](int f, int part, int l) {
                    const int row = part * columns + f * 8 + l / 4;
                    return *reinterpret_cast<const mma::Right*>(upstream + row * upstream_pitch + step * 8 + l % 4 * 2);
                });
            }
        }
        __syncthreads();

        // 6. From ∂L/∂F to the logits.
        // The terms of 33 bins do not fit the registers; on sm_80 those of 17 do not everywhere.
        if constexpr (BINS > 17 || !Added::any) rows.forget();
        if (a.grad_logits || a.grad_scales) {
            float ranks[2][pair_ranks], factors[2][pair_ranks], otherwise[2];
            each<2>(0, [&](int row) {
                const float inverse = rows.softmax[row].inverse;
                float gradient[pair_ranks];
                const float sum = statistics_backward<pair_ranks, float>(terms[row], inverse, kept(), [&](int j) {
                    return grad[row] * own[j * feature_pitch + row];
                }, gradient);
                each<pair_ranks>(0, [&](int j) {
                    ranks[row][j] = rows.top(row, j);
                    factors[row][j] = (gradient[j] - sum) * inverse;
                });
                otherwise[row] = -sum * inverse;
            });
            // Of one logit; `term` is its term of the softmax. A point past the end has the gradient 0.
            const auto through_ranks = [&](int row, float z, float term) {
                return term * ptx::take_rank(z, ranks[row], factors[row], otherwise[row]);
            };
            const auto to_logit = [&](float z, float value) {
                scale_sum = multiply_add(z, value, scale_sum);
                return value * scale;
            };
            bool adds[2] = {};
            if constexpr (Added::any)
                each<2>(0,
                        [&](int row) { adds[row] = place.valid[row] && added.adds(first_place + place.point[row]); });
            if (!adds[0] && !adds[1]) {
                each<BINS>(0, [&](int b) {
                    float gradient[2];
                    each<2>(0, [&](int row) {
                        const float z = rows.z(row, b);
                        gradient[row] = to_logit(z, through_ranks(row, z, rows.softmax[row].term(z)));
                    });
                    rows.z.put(b, gradient[0], gradient[1]);
                });
            }
            if constexpr (Added::any) {
                if (adds[0] || adds[1]) {  // few points
                    each<2>(0, [&](int row) {
                        rows.forget();
                        const PairSoftmax& softmax = rows.softmax[row];
                        typename Added::Row own_row{};
                        if (adds[row])
                            own_row = added.template row<BINS>(first_place + place.point[row], group, BINS, [&](int b) {
                                return softmax.term(rows.z(row, b));
                            }, softmax.inverse);
                        rows.forget();
                        each<BINS>(0, [&](int b) {
                            const float z = rows.z(row, b), term = softmax.term(z);
                            float value = through_ranks(row, z, term);
                            if (adds[row]) value += added.at(own_row, b, term * softmax.inverse);
                            rows.z.set(row, b, narrow<T>(to_logit(z, value)));
                        });
                    });
                }
            }
            if (a.grad_logits) {
                if constexpr (STAGED) {
                    StagedPairs<T, BINS>{staged, group}.write(rows.z, InTile(place, from).local, place.valid);
                    __syncthreads();
                    tile_from_shared<BINS, tile>(level, chunk.image, from, walk.count(from), staged);
                } else {
                    write_pairs<T, BINS>(rows.z, level,
                                         static_cast<T*>(level.grad_logits) + chunk.image * level.grad_strides.image +
                                             group * level.grad_strides.side,
                                         place, grad_pairs);
                }
            }
        }
    }

    // 7. The block's partial sums.
    if (a.grad_weight1) {
        float* const partial = static_cast<float*>(a.workspace) + blockIdx.x * predictor_width(statistics, a.hidden);
        each<feature_tiles>(0, [&](int f) {
            each<4>(0, [&](int i) {
                const int unit = group * 16 + i / 2 * 8 + lane / 4, column = f * 8 + lane % 4 * 2 + i % 2;
                if (unit < a.hidden && column <= statistics)
                    partial[unit * (statistics + 1) + column] = products[f][i] + low_products[f][i];
            });
        });
        const float sum = block_sum<threads>(upstream_sum, memory);
        if (threadIdx.x == 0) partial[a.hidden * (statistics + 1)] = sum;
    }
    if (a.grad_scales) {
        const float sum = block_sum<threads>(scale < 0.0f ? -scale_sum : scale_sum, memory);
        float* const sums = static_cast<float*>(a.workspace) +
                            blocks.count * predictor_width(statistics, a.grad_weight1 ? a.hidden : 0);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    }
}

}  // namespace gflv2::cuda::tiles
