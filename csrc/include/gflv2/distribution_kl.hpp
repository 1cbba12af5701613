// The arithmetic of one row of the divergence of distributions (Localization Distillation, arXiv 2102.12252).
//
// With s = (z − max z)/T of the student's logits z, t the same of the teacher's, and P_t ∝ exp(t), P_s ∝ exp(s):
//
//   Σ_b P_t·(log P_t − log P_s) = Σ_b P_t·(t_b − s_b) + log(Σ exp(s) / Σ exp(t))
//   ∂/∂z_b = (P_s − P_t) / T
//
// One logarithm of a quotient, not two: at the high temperatures of distillation the two sums are nearly equal, and so
// are their logarithms. The loss is T²/R times the divergence, its gradient T/R times the difference. V, S, Row and
// BINS as in gflv2/integral.hpp.
#pragma once

#include "gflv2/logarithm.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"
#include "gflv2/softmax.hpp"

GFLV2_BEGIN

template <class S> struct KlFactors {
    S inverse;   // 1/T
    S loss;      // T²/R
    S gradient;  // T/R, and upstream of all gradients
};

template <class S> GFLV2_HD KlFactors<S> kl_factors(double temperature, int bins) {
    return {S(1 / temperature), S(temperature * temperature / bins), S(temperature / bins)};
}

template <class V> struct KlRow {
    V student, teacher;  // Σ exp(s_b), Σ exp(t_b)
    V weighted;          // Σ exp(t_b)·(t_b − s_b)
};

// keep(bin, exp(s_b), exp(t_b)) for every bin; the rows may be overwritten by them.
template <int BINS, class S, class V, class Row, class Keep>
GFLV2_HD KlRow<V> kl_row(const Row& student, const Row& teacher, int bins, S inverse, const Keep& keep) {
    const V student_largest = scaled_largest<BINS, V>(student, bins, S(1)),
            teacher_largest = scaled_largest<BINS, V>(teacher, bins, S(1));
    V students[chains] = {}, teachers[chains] = {}, weighted[chains] = {};
    each_chained<BINS>(bins, [&](int b, int chain) {
        // The difference first: a large logit divided by T would lose the digits that the exponential needs.
        const V s = (student[b] - student_largest) * inverse, t = (teacher[b] - teacher_largest) * inverse;
        const V e_s = exponential(s), e_t = exponential(t);
        keep(b, e_s, e_t);
        students[chain] += e_s;
        teachers[chain] += e_t;
        // Not a product alone: a logit of −∞ in a bin that the teacher rules out must not spoil the loss.
        weighted[chain] += t < S(-87) ? V{} : V(e_t * (t - s));
    });
    const auto sum = [](V a, V b) { return a + b; };
    return {combine(students, sum), combine(teachers, sum), combine(weighted, sum)};
}

// Of ratio = student / teacher and mean = weighted / teacher; `factor` is T²/R. ratio − ratio: the logarithm of a NaN
// need not be one.
template <class S, class V> GFLV2_HD V kl_loss(V ratio, V mean, S factor) {
    return factor * (mean - minus_log(ratio, V(S(1) - ratio))) + (ratio - ratio);
}

// ∂(loss)/∂z_b · upstream, for the exponentials that were kept; with T/R in `upstream`. Two products, neither of them
// fused, so that equal distributions have no gradient at all.
template <class V> GFLV2_HD V kl_gradient(V e_student, V e_teacher, V over_student, V over_teacher, V upstream) {
    return upstream * (e_student * over_student - e_teacher * over_teacher);
}

GFLV2_END
