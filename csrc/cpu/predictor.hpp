// The two layers of the quality predictor on tiles of points: one point in each lane, so every layer is a small matrix
// product whose weights are broadcast and whose sums stay in registers.
//
//   p_h = Σ_f W1_hf·F_f + b1_h,   r = Σ_h w2_h·max(p_h, 0) + b2
//
// Backward, with g = ∂L/∂r and a_h = g where p_h > 0, else 0:
//   ∂L/∂F_f = Σ_h (w2_h·W1_hf)·a_h,   D_hf = Σ_points a_h·F_f,   D_h = Σ_points a_h
//   ∂L/∂W1_hf = w2_h·D_hf,   ∂L/∂b1_h = w2_h·D_h,   ∂L/∂w2_h = Σ_f W1_hf·D_hf + b1_h·D_h
// (the last because max(p_h, 0)·g = a_h·p_h): the sums over points are those of D alone.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/simd.hpp"

GFLV2_BEGIN

constexpr int outputs_together = 4;  // of a layer, for each point in registers

// Point vectors in registers at a time: with 32 registers (AVX-512, NEON) four, with 16 two.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tiles_together = 4;
#else
constexpr int tiles_together = 2;
#endif

constexpr std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

// The weights in the order in which the loops below read them. Units beyond `hidden` have weight 0.
template <class S> struct PackedPredictor {
    int features, hidden, units;    // units: hidden, rounded up
    std::vector<S> forward;         // (units / 4, F, 4): W1
    std::vector<S> backward;        // (F / 4, units, 4): w2·W1
    std::vector<S> bias1, weight2;  // (units,)
    S bias2;

    PackedPredictor(int features, int hidden, const S* weight1, const S* b1, const S* w2, const S* b2)
        : features(features), hidden(hidden), units(int(round_up(hidden, outputs_together))),
          forward(std::size_t(units) * features), backward(forward.size()), bias1(units), weight2(units), bias2(*b2) {
        constexpr int m = outputs_together;
        for (int h = 0; h < hidden; ++h) {
            bias1[h] = b1[h];
            weight2[h] = w2[h];
            for (int f = 0; f < features; ++f) {
                const S weight = weight1[std::int64_t(h) * features + f];
                forward[(std::size_t(h / m) * features + f) * m + h % m] = weight;
                backward[(std::size_t(f / m) * units + h) * m + f % m] = w2[h] * weight;
            }
        }
    }
};

// One layer on a block of `tiles_together` tiles: calls use(first output, sums), sums[tile][output] = Σ_i
// in_i·weight_i. in: input i of tile t at in[t·pitch + i].
template <class S, class Use>
GFLV2_HD void layer(const vector_t<S>* in, std::int64_t pitch, int inputs, const S* weights, int outputs,
                    const Use& use) {
    using V = vector_t<S>;
    constexpr int P = tiles_together, M = outputs_together;
    for (int first = 0; first < outputs; first += M, weights += std::int64_t(inputs) * M) {
        V sums[P][M] = {};
        for (int i = 0; i < inputs; ++i) {
            V values[P];
            each<P>(P, [&](int t) { values[t] = in[t * pitch + i]; });
            each<M>(M, [&](int o) {
                const V weight = splat(weights[i * M + o]);
                each<P>(P, [&](int t) { sums[t][o] = multiply_add(values[t], weight, sums[t][o]); });
            });
        }
        use(first, sums);
    }
}

// The block of D that one register of sums holds: as many (unit, feature) pairs as it has lanes.
template <class S> constexpr int units_together = lanes<S> >= 16 ? 4 : lanes<S> >= 4 ? 2 : 1;
template <class S> constexpr int features_together = lanes<S> / units_together<S>;

// Adds Σ_tiles Σ_lanes a_h·F_f to the sums, (units / H, F / N, H·N) with H, N the two numbers above.
// active: unit h of tile t at active[t·units + h]; features: at features[t·count + f].
template <class S>
GFLV2_HD void add_outer_products(const vector_t<S>* active, int units, const vector_t<S>* features, int count,
                                 int tiles, double* sums) {
    using V = vector_t<S>;
    constexpr int n = lanes<S>, H = units_together<S>, N = features_together<S>;
    for (int h = 0; h < units; h += H) {
        for (int f = 0; f < count; f += N, sums += n) {
            V products[n] = {};
            for (int t = 0; t < tiles; ++t) {
                const V* a = active + std::int64_t(t) * units + h;
                const V* b = features + std::int64_t(t) * count + f;
                V right[N];
                each<N>(N, [&](int j) { right[j] = b[j]; });
                each<H>(H, [&](int i) {
                    each<N>(N, [&](int j) { products[i * N + j] = multiply_add(a[i], right[j], products[i * N + j]); });
                });
            }
            sum_each<S>(products);
            for (int i = 0; i < n; ++i) sums[i] += double(products[0][i]);
        }
    }
}

// Where D_hf lies in the sums of add_outer_products.
template <class S> std::int64_t outer_product_index(int h, int f, int features) {
    constexpr int H = units_together<S>, N = features_together<S>;
    return (std::int64_t(h / H) * (features / N) + f / N) * (H * N) + h % H * N + f % N;
}

GFLV2_END
