// The arithmetic of one row of `dgqp`: the statistics of one side's distribution, and the way back to its logits
// (arXiv 2011.12885, section 3.2).
//
//   t_b = scale·z_b,   e_b = exp(t_b − max t),   P = e / Σ e,   T = the k largest P, descending; of equal ones the
//   lower bin first mean = Σ T_j / k,   variance = Σ (T_j − mean)² / k
//   ∂L/∂T_j = g_j + (g_mean + 2·g_variance·(T_j − mean)) / k
//   ∂L/∂t_b = P_b·(∂L/∂P_b − Σ_j T_j·∂L/∂T_j), where ∂L/∂P_b = ∂L/∂T_j for the bin that came j-th, else 0
//
// V, S, Row and BINS as in gflv2/integral.hpp. TOPK > 0: arrays over the ranks have that many places, and their loops
// are unrolled, so that the arrays stay in registers; k itself may be smaller. TOPK = 0: arrays in memory, loops of k
// steps.
#pragma once

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/softmax.hpp"

GFLV2_BEGIN

// f(0), …, f(k − 1).
template <int TOPK, class F> GFLV2_HD void each_rank(int topk, const F& f) {
    each<TOPK>(topk, [&](int j) {
        if (j < topk) f(j);
    });
}

// Which statistics a side has.
struct Statistics {
    int topk;
    bool mean, variance;
    GFLV2_HD int count() const { return topk + int(mean) + int(variance); }
};

// What a row leaves beside its k largest exponentials.
template <class V> struct Peak {
    V largest;  // max t; on a GPU max t·log2 e
    V inverse;  // 1 / Σ e
};

// Puts the k largest e, descending, into top[0…k).
template <int BINS, int TOPK, class V, class S, class Row, class Exponentials>
GFLV2_HD Peak<V> softmax_top(const Row& row, int bins, S scale, int topk, Exponentials& exponentials, V* top) {
    // May the bin's number address a rank? Not where the one is known at run time only and the other lies in registers.
    constexpr bool addressable = BINS > 0 || TOPK == 0;
    if constexpr (!addressable) each_rank<TOPK>(topk, [&](int j) { top[j] = broadcast<V>(S(-1)); });
    const V largest = largest_exponent(leading_logit<BINS, V>(row, bins, scale), scale);
    const S steep = exponent_scale(scale, largest);
    V total[chains] = {};
    each_chained<BINS>(bins, [&](int b, int chain) {
        V e = softmax_term(V(row[b]), steep, largest);
        exponentials.keep(b, e);
        total[chain] += e;
        // Insertion: each place keeps the larger of the two and hands the smaller one on.
        const int sorted = addressable && b < topk ? b : topk;
        each_rank<TOPK>(sorted, [&](int j) {
            const V rest = smaller(e, top[j]);
            top[j] = larger(e, top[j]);
            e = rest;
        });
        if constexpr (addressable) {
            if (b < topk) top[b] = e;
        }
    });
    return {largest, quotient(broadcast<V>(S(1)), combine(total, [](V a, V b) { return a + b; }))};
}

// The mean and the variance of the k largest probabilities; the variance only where it is wanted.
template <class V> struct Moments {
    V mean, variance;
};

template <int TOPK, class S, class V>
GFLV2_HD Moments<V> moments_of(const V* top, V inverse, const Statistics& statistics) {
    const int topk = statistics.topk;
    V sum = V{};
    each_rank<TOPK>(topk, [&](int j) { sum += top[j]; });
    const V mean = sum * inverse * (S(1) / S(topk));
    V squares = V{};
    if (statistics.variance) {
        each_rank<TOPK>(topk, [&](int j) {
            const V off = multiply_add(top[j], inverse, V(-mean));
            squares = multiply_add(off, off, squares);
        });
    }
    return {mean, squares * (S(1) / S(topk))};
}

// Calls put(place, value) for each statistic of the side.
template <int TOPK, class S, class V, class Put>
GFLV2_HD void statistics_of(const V* top, V inverse, const Statistics& statistics, const Put& put) {
    const int topk = statistics.topk;
    each_rank<TOPK>(topk, [&](int j) { put(j, V(top[j] * inverse)); });
    if (!statistics.mean && !statistics.variance) return;
    const Moments<V> moments = moments_of<TOPK, S>(top, inverse, statistics);
    if (statistics.mean) put(topk, moments.mean);
    if (statistics.variance) put(topk + int(statistics.mean), moments.variance);
}

// From get(place) = ∂L/∂statistic to gradient[j] = ∂L/∂T_j; returns Σ_j T_j·∂L/∂T_j.
template <int TOPK, class S, class V, class Get>
GFLV2_HD V statistics_backward(const V* top, V inverse, const Statistics& statistics, const Get& get, V* gradient) {
    const int topk = statistics.topk;
    const S share = S(1) / S(topk);
    const V of_mean = statistics.mean ? V(get(topk) * share) : V{};
    V of_variance = V{}, mean = V{};
    if (statistics.variance) {
        of_variance = get(topk + int(statistics.mean)) * (S(2) * share);
        mean = moments_of<TOPK, S>(top, inverse, {topk, false, false}).mean;
    }
    V sum = V{};
    each_rank<TOPK>(topk, [&](int j) {
        const V value = top[j] * inverse;
        gradient[j] = multiply_add(of_variance, V(value - mean), V(get(j) + of_mean));
        sum = multiply_add(value, gradient[j], sum);
    });
    return sum;
}

// One number's part of the search for a bin's rank; csrc/cpu/simd.hpp has it for vectors. Where `e` is the value `top`
// of a rank that no lower bin took, and has none yet: it takes the rank, whose gradient becomes its own.
GFLV2_HD bool unranked(float) { return true; }
GFLV2_HD bool unranked(double) { return true; }
template <class S> GFLV2_HD void take_rank(S e, S& top, S gradient, S& taken, bool& free) {
    const bool here = free && e == top;
    taken = here ? gradient : taken;
    top = here ? S(-1) : top;  // no exponential is negative
    free = free && !here;
}

// Calls use(bin, ∂L/∂t_b) for every bin. `top` is used up; `gradient` and `sum` are statistics_backward's.
template <int BINS, int TOPK, class V, class S, class Row, class Exponentials, class Use>
GFLV2_HD void softmax_top_backward(const Row& row, int bins, S scale, int topk, const Exponentials& exponentials,
                                   const Peak<V>& peak, V* top, const V* gradient, V sum, const Use& use) {
    each<BINS>(bins, [&](int b) {
        const V e = exponentials.get(row, b, scale, peak.largest);
        V taken = V{};
        auto free = unranked(e);
        each_rank<TOPK>(topk, [&](int j) { take_rank(e, top[j], gradient[j], taken, free); });
        use(b, V(e * peak.inverse * (taken - sum)));
    });
}

GFLV2_END
