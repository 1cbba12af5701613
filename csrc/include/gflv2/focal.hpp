// The arithmetic of one class of one point in the losses of the focal family, on a logit x, with σ = σ(x):
//
//   a negative                    a·σ^γ·softplus(x), whose weight a·σ^γ is a constant to the gradient where DETACHED
//   the element of a label, y:
//     sigmoid_focal               α·(1 − σ)^γ·softplus(−x)                  (arXiv 1708.02002)
//     varifocal                   w·BCE(σ, y), w = y, or 1                  (arXiv 2008.13367)
//     matchability_aware          BCE(σ, y^γ)                               (arXiv 2412.04234)
//     iou_aware_bce               BCE(σ, t), t = max(σ^α·y^(1−α), 0.01), a constant to the gradient (arXiv 2406.03459)
//
// A negative is qfl.hpp's of one logit, of exponent γ, times a. An infinite logit gives the limit.
#pragma once

#include "gflv2/api/focal.hpp"
#include "gflv2/qfl.hpp"

GFLV2_BEGIN

// x^(HALVES/2) for 0 ≤ x ≤ 1.
template <int HALVES, class V> GFLV2_HD V power_of(V x) {
    static_assert(HALVES == 3 || HALVES == 4);
    if constexpr (HALVES == 4) return x * x;
    else return x * quick_root(x);
}

// The least target of iou_aware_bce.
template <class S> constexpr S least_target = S(0.01);

// J as 1 − J and the other way round: that of −x.
template <class V> GFLV2_HD JointScore<V> mirrored(const JointScore<V>& j) {
    JointScore<V> m{};
    m.score = j.class_rest;
    m.class_rest = j.score;
    m.loss = j.gain;
    m.gain = j.loss;
    return m;
}

// As QflElements, which see. Twice γ is HALVES, or where that is 0 any number.
template <class SCALAR, bool DETACHED, int HALVES = 0> struct FocalElements {
    using S = SCALAR;
    using Arguments = FocalArguments;
    static constexpr QflForm form = QflForm::logits;
    static constexpr bool dense = false;
    static constexpr bool own_labels = true;
    static constexpr bool small = HALVES != 0;

    FocalKind kind;
    S alpha, negative;
    bool iou_weighted;
    Modulation<S> modulation;

    GFLV2_HD explicit FocalElements(const FocalArguments& a)
        : kind(a.kind), alpha(S(a.alpha)), negative(S(a.negative)), iou_weighted(a.iou_weighted),
          modulation{HALVES ? S(HALVES) / 2 : S(a.gamma)} {}

    bool may_be_small() const { return HALVES != 0; }

    // A negative's, without the factor.
    template <class V> GFLV2_HD V negative_value(const JointScore<V>& j) const { return j.loss * weight(j.score); }
    template <class V> GFLV2_HD QflGradients<V> negative_gradients(const JointScore<V>& j) const {
        if constexpr (DETACHED) return {V(weight(j.score) * j.score), V{}};
        else return differentiable(j);
    }

    template <class V> static GFLV2_HD V small_factor(V joint) { return power_of<HALVES ? HALVES : 4>(joint); }
    template <class V> static GFLV2_HD QflSmallGradients<V> small_parts(V odds, V, V, V upstream, V& joint) {
        joint = quotient(broadcast<V>(S(1)), V(S(1) + odds));
        if constexpr (DETACHED) return {V(small_factor(joint) * joint * upstream), V{}};
        const V rest = odds * joint, gamma = broadcast<V>(S(HALVES) / 2);
        return {V(small_factor(joint) * multiply_add(V(small_loss(joint) * rest), gamma, joint) * upstream), V{}};
    }

    // The label's.
    GFLV2_HD S value(const JointScore<S>& j, S y) const {
        if (kind == FocalKind::sigmoid_focal) return alpha * (j.gain * weight(j.class_rest));
        const S t = target(j, y);
        return part_of<S>(share(y), cross_entropy<S>(t, j.gain, j.loss));
    }
    GFLV2_HD QflGradients<S> gradients(const JointScore<S>& j, S y) const {
        if (kind == FocalKind::sigmoid_focal) return {-alpha * differentiable(mirrored(j)).value, S(0)};
        const S t = target(j, y);
        return {share(y) * (j.score * (S(1) - t) - t * j.class_rest), S(0)};
    }

private:
    // σ^γ
    template <class V> GFLV2_HD V weight(V score) const {
        if constexpr (HALVES != 0) return power_of<HALVES>(score);
        else return modulation.factor(score);
    }

    // Of σ^γ·softplus, both factors of which depend on x.
    template <class V> GFLV2_HD QflGradients<V> differentiable(const JointScore<V>& j) const {
        const V factor = weight(j.score);
        const V slope = HALVES == 4 ? V(j.score + j.score)
                        : HALVES    ? V(quick_root(j.score) * (S(HALVES) / 2))
                                    : modulation.derivative(j.score, factor);
        return qfl_chain<QflForm::logits, true>(j, V(factor * j.score), V(bce_in_gradient(j.loss) * slope));
    }

    // What a label's cross-entropy is multiplied by.
    GFLV2_HD S share(S y) const { return kind == FocalKind::varifocal && iou_weighted ? y : S(1); }

    GFLV2_HD S target(const JointScore<S>& j, S y) const {
        if (kind == FocalKind::varifocal) return y;
        if (kind == FocalKind::matchability_aware) return power(y, modulation.beta, S(0));
        const S t = power(y, S(1) - alpha, part_of<S>(alpha, j.gain));
        return t < least_target<S> ? least_target<S> : t;
    }

    // y^exponent·exp(−further), for 0 ≤ y ≤ 1.
    static GFLV2_HD S power(S y, S exponent, S further) {
        constexpr S smallest = sizeof(S) == 4 ? S(1.17549435e-38) : S(2.2250738585072014e-308);
        const S own = y <= S(0) ? (exponent > S(0) ? infinite<S> : S(0))
                                : exponent * minus_log(maximum(smallest, y), S(S(1) - y));
        const S all = own + further;
        // A NaN stays one.
        return (all >= infinite<S> ? S(0) : exponential_wide(-minimum(far_logit<S>, all))) + (y - y);
    }
};

GFLV2_END
