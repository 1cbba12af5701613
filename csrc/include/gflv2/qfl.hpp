// The arithmetic of one class of one point in the Quality Focal Loss (arXiv 2006.04388, equation 5): BCE(J, y)·|J −
// y|^β.
//
//   logits         J = σ(c)
//   joint          J = σ(c)·σ(r)   (arXiv 2011.12885, equation 1), r shared by the classes of a row
//   probabilities  J = p
//
// With E = exp(−c) and q = 1 − σ(r):  σ(c) = 1/(1 + E),  1 − σ(c) = E/(1 + E),  1 − J = (E + q)/(1 + E).
// Nothing is subtracted, so J and 1 − J both keep their relative precision, and one exponential and one logarithm are
// enough. Where J is so near 1 that 1 − J would leave the range of the numbers, both logits are first moved down by the
// same h: then 1 − J grows by the factor exp(h), which is added back to its logarithm, and no ratio changes.
//
//   ∂L/∂c = (1 − σ(c))·T,   ∂L/∂r = (1 − σ(r))·T,   T = |J−y|^β·(J−y)/(1−J) + BCE·∂|J−y|^β/∂J·J
//
// An infinite logit gives the limit: the loss is 0 where J → y and +∞ where it grows without bound, the gradients are
// finite always. (Where both logits are +∞, 1 − J → 0 in equal parts from both of them, as for two equal logits.)
//
// V is a number or a vector of numbers, S its element type.
#pragma once

#include <limits>

#include "gflv2/api/qfl.hpp"
#include "gflv2/logarithm.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// exp(−x) and exp(x) stay normal numbers up to here.
template <class S> constexpr S far_logit = sizeof(S) == 4 ? S(87) : S(700);
template <class S> constexpr S not_a_number = std::numeric_limits<S>::quiet_NaN();
template <class S> constexpr S infinite = std::numeric_limits<S>::infinity();
template <class S> constexpr S largest = std::numeric_limits<S>::max();
// From here on σ is 1 in either precision; above it logits are moved down.
template <class S> constexpr S large_logit = S(40);

// exp(−x), limited.
template <class S, class V> GFLV2_HD V odds_against(V x) {
    // In this order of arguments a NaN is kept.
    return exponential_wide(minimum(broadcast<V>(far_logit<S>), maximum(broadcast<V>(-far_logit<S>), V(-x))));
}

// −x where x lies below the limit: what −log σ(x) lacks there.
template <class S, class V> GFLV2_HD V beyond_far(V x) { return maximum(V{}, V(-x - far_logit<S>)); }

// In a gradient the cross entropy is a factor of J or of 1 − J, which is 0 long before it is as large as this. The limit
// keeps ∞ away from that 0.
constexpr float most_in_gradient = 1024;

template <class V> GFLV2_HD V bce_in_gradient(V bce) { return minimum(broadcast<V>(most_in_gradient), bce); }

// share·amount for an amount that may be infinite: nothing for a share of 0, but for a NaN.
template <class S, class V> GFLV2_HD V part_of(V share, V amount) {
    return share * (share == S(0) ? minimum(broadcast<V>(S(1)), amount) : amount);
}

template <class S, class V> GFLV2_HD V cross_entropy(V y, V gain, V loss) {
    return part_of<S>(y, gain) + part_of<S>(V(S(1) - y), loss);
}

// min(−log(value), 100), also for 0 and for the numbers below the smallest normal one.
template <class S, class V> GFLV2_HD V limited_minus_log(V value, V complement) {
    const auto small = value < S(1e-30);
    const V raised = small ? V(value * S(0x1p64)) : value;
    return minimum(broadcast<V>(S(100)),
                   V(minus_log(raised, complement) + (small ? broadcast<V>(S(44.36141955583650)) : V{})));
}

// |d|^β and its derivative, the latter 0 at d = 0.
template <class S> struct Modulation {
    S beta;

    template <class V> GFLV2_HD V factor(V d) const {
        if (beta == S(2)) return d * d;
        const V size = magnitude(d);
        const V power =
            exponential_wide(minimum(broadcast<V>(far_logit<S>),
                                     maximum(broadcast<V>(-far_logit<S>), V(minus_log(size, V(S(1) - size)) * -beta))));
        return d == S(0) ? broadcast<V>(beta > S(0) ? S(0) : S(1))
                         : V(power + (d - d));  // a NaN stays one, also for β = 0
    }

    template <class V> GFLV2_HD V derivative(V d, V factor) const {
        if (beta == S(2)) return d + d;
        const V size = magnitude(d), steepness = beta * factor / size;
        return d == S(0) ? V{} : d < S(0) ? V(-steepness) : steepness;
    }

private:
    // Not below the smallest normal number.
    template <class V> GFLV2_HD static V magnitude(V d) {
        constexpr S smallest = sizeof(S) == 4 ? S(1.17549435e-38) : S(2.2250738585072014e-308);
        return maximum(broadcast<V>(smallest), maximum(V(-d), d));
    }
};

// What the classes of a row share in the joint form.
template <class V> struct Quality {
    V logit;  // r
    V score;  // σ(r)
    V rest;   // 1 − σ(r)
};

template <class S, class V> GFLV2_HD Quality<V> quality_of(V r) {
    const V odds = odds_against<S>(r), score = S(1) / (S(1) + odds);
    return {r, score, V(odds * score)};
}

// J and its surroundings. Of what a caller does not use, nothing is computed.
template <class V> struct JointScore {
    V score;         // J
    V loss;          // −log(1 − J)
    V gain;          // −log J
    V ratio;         // J/(1 − J)
    V inverse;       // 1/(1 − J); probabilities: 1/(J·(1 − J))
    V class_rest;    // 1 − σ(c)
    V quality_rest;  // 1 − σ(r)
};

// LARGE: r may be above large_logit (costs a second exponential).
template <QflForm FORM, bool LARGE, class S, class V> GFLV2_HD JointScore<V> joint_score(V value, Quality<V> quality) {
    const V one = broadcast<V>(S(1));
    JointScore<V> j{};
    if constexpr (FORM == QflForm::probabilities) {
        // Logarithms limited to 100 and the product to 1e-12, as in torch's own binary cross-entropy; outside [0, 1]:
        // NaN.
        const V rest = one - value;
        j.score = value;
        j.loss = value <= S(1) ? limited_minus_log<S>(rest, value) : broadcast<V>(not_a_number<S>);
        j.gain = value >= S(0) ? limited_minus_log<S>(value, rest) : broadcast<V>(not_a_number<S>);
        j.inverse = one / maximum(broadcast<V>(S(1e-12)), V(value * rest));
    } else {
        V shift = V{}, moved = value;
        if constexpr (FORM == QflForm::logits) {
            shift = maximum(V{}, V(value - large_logit<S>));
            moved = minimum(broadcast<V>(large_logit<S>), value);
        } else if constexpr (LARGE) {
            shift = maximum(V{}, V(minimum(quality.logit, value) - large_logit<S>));
            // ∞ − ∞ would be no number. Two infinite logits stay so, and their odds are equal.
            const V finite = minimum(broadcast<V>(largest<S>), shift);
            moved = value - finite;
            quality = quality_of<S>(V(quality.logit - finite));
        }
        const V odds = odds_against<S>(moved), whole = one + odds, sigma = one / whole;
        j.class_rest = odds * sigma;
        j.quality_rest = quality.rest;
        j.gain = minus_log(sigma, j.class_rest) + beyond_far<S>(value);
        if constexpr (FORM == QflForm::logits) {
            j.score = sigma;
            j.loss = minus_log(j.class_rest, sigma) + shift;
        } else {
            const V sum = odds + quality.rest, over = one / sum;
            j.score = sigma * quality.score;
            j.loss = minus_log(V(sum * sigma), j.score) + shift;
            j.gain += minus_log(quality.score, quality.rest) + beyond_far<S>(quality.logit);
            j.ratio = quality.score * over;
            j.inverse = whole * over;
        }
    }
    return j;
}

template <class S, class V> GFLV2_HD V qfl_value(const JointScore<V>& j, V y, const Modulation<S>& modulation) {
    const V bce = cross_entropy<S>(y, j.gain, j.loss);
    // Also where y is so small that its power is 0.
    return bce == infinite<S> ? bce : V(bce * modulation.factor(V(j.score - y)));
}

// For y = 0, with fewer operations.
template <class S, class V> GFLV2_HD V qfl_negative_value(const JointScore<V>& j, const Modulation<S>& modulation) {
    return j.loss * modulation.factor(j.score);
}

template <class V> struct QflGradients {
    V value;    // of the class logit, or of the probability
    V quality;  // of the quality logit
};

// `direct` is T's first term: the numerator where INVERTED, else already divided by 1 − J.
template <QflForm FORM, bool INVERTED, class V>
GFLV2_HD QflGradients<V> qfl_chain(const JointScore<V>& j, V direct, V through) {
    if constexpr (FORM == QflForm::logits) return {multiply_add(through, V(j.score * j.class_rest), direct), V{}};
    if constexpr (FORM == QflForm::probabilities) return {multiply_add(direct, j.inverse, through), V{}};
    const V t =
        INVERTED ? multiply_add(direct, j.inverse, V(through * j.score)) : multiply_add(through, j.score, direct);
    return {V(j.class_rest * t), V(j.quality_rest * t)};
}

template <QflForm FORM, class S, class V>
GFLV2_HD QflGradients<V> qfl_gradients(const JointScore<V>& j, V y, const Modulation<S>& modulation) {
    const V difference = j.score - y, factor = modulation.factor(difference);
    const V bce = bce_in_gradient(cross_entropy<S>(y, j.gain, j.loss));
    return qfl_chain<FORM, true>(j, V(factor * difference), V(bce * modulation.derivative(difference, factor)));
}

template <QflForm FORM, class S, class V>
GFLV2_HD QflGradients<V> qfl_negative_gradients(const JointScore<V>& j, const Modulation<S>& modulation) {
    const V factor = modulation.factor(j.score),
            through = bce_in_gradient(j.loss) * modulation.derivative(j.score, factor);
    if constexpr (FORM == QflForm::joint) return qfl_chain<FORM, false>(j, V(factor * j.ratio), through);
    return qfl_chain<FORM, true>(j, V(factor * j.score), through);
}

// ---------------------------------------------------------------------------------------------------------------------
// Nearly every element is a negative of β = 2 with a small J. For those the same values take half of the operations,
// and no choice between numbers: V may also be several vectors whose chains of operations then run side by side. The
// caller looks at J and drops the result where it is not below small_score. The quality logit lies within ±large_logit.

template <class S> constexpr S small_score = S(0.2);

// −log(1 − J) for a small J: J + J²·p(J), where p is the polynomial of degree 4 that minimises the largest relative
// error (9e-9).
template <class V> GFLV2_HD V small_loss(V j) {
    V p = broadcast<V>(2.882349491e-1f);
    p = multiply_add(p, j, broadcast<V>(1.702012837e-1f));
    p = multiply_add(p, j, broadcast<V>(2.531352341e-1f));
    p = multiply_add(p, j, broadcast<V>(3.331925273e-1f));
    p = multiply_add(p, j, broadcast<V>(5.000020266e-1f));
    return multiply_add(V(j * j), p, j);
}

// exp(−c) for a small J, on a GPU, with half of the instructions of odds_against: 2^y, y = −c·log2 e, times e^r, where
// r is what rounding has taken from y (and from log2 e); J³ would lose |c| units in the last place without it. Always
// fused: else r is lost. Far below the range of interest c is limited, so that no product is 0·∞.
GFLV2_HD float qfl_small_odds(float c) {
    const float limited = ptx::max_nan(c, -86.0f), y = limited * -log2_of_e;
    const float power = ptx::exp2(y), r = fmaf(y, -0.693147180559945f, -limited);
    return multiply_add(power, r, power);
}

// J. odds: exp(−c); score: σ(r), or 1 without a quality.
template <class V> GFLV2_HD V qfl_small_score(V odds, V score) { return quotient(score, V(1.0f + odds)); }

// What a small negative gives: its gradient, and T, of which 1 − σ(r) is the factor for the gradient of r.
template <class V> struct QflSmallGradients {
    V value, t;
};

// rest: 1 − σ(r); upstream: ∂L/∂(loss), divided by σ(r). The gradient of c is multiplied by it, T is not. J is left in
// `joint`.
template <QflForm FORM, class S, class V>
GFLV2_HD QflSmallGradients<V> qfl_small_parts(V odds, V score, V rest, V upstream, V& joint) {
    const V two = broadcast<V>(S(2)), whole = S(1) + odds;
    if constexpr (FORM == QflForm::logits) {
        joint = quotient(broadcast<V>(S(1)), whole);
        const V complement = odds * joint;  // 1 − σ(c)
        return {V(joint * joint * multiply_add(V(small_loss(joint) * complement), two, joint) * upstream), V{}};
    } else {
        // One division for J = σ(r)/(1 + E) and J/(1 − J) = σ(r)/(E + q). Where the product overflows both are 0, and
        // so are the gradients. 1 − σ(c) = E·J/σ(r).
        const V sum = odds + rest, both = quotient(score, V(whole * sum));
        joint = both * sum;
        const V t = joint * joint * multiply_add(small_loss(joint), two, V(both * whole));
        return {V(odds * joint * t * upstream), t};
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The elements of a class map, as what goes through all of them takes them (cpu/class_maps.hpp, cuda/class_maps.cuh).
// HALVES: twice the exponent where it is known when this is compiled, else 0.
template <class SCALAR, QflForm FORM, int HALVES = 0> struct QflElements {
    using S = SCALAR;
    using Arguments = QflArguments;
    static constexpr QflForm form = FORM;
    static constexpr bool dense = HALVES == 0;  // may each have a target of its own?
    static constexpr bool own_labels = false;   // do the negatives alone have a factor, `negative`?
    static constexpr bool small = HALVES != 0 && FORM != QflForm::probabilities;  // is the small form known to fit?

    Modulation<S> modulation;

    GFLV2_HD explicit QflElements(const QflArguments& a) : modulation{HALVES == 4 ? S(2) : S(a.beta)} {}

    bool may_be_small() const { return FORM != QflForm::probabilities && modulation.beta == S(2); }

    template <class V> GFLV2_HD V value(const JointScore<V>& j, V y) const { return qfl_value(j, y, modulation); }
    template <class V> GFLV2_HD V negative_value(const JointScore<V>& j) const {
        return qfl_negative_value(j, modulation);
    }
    template <class V> GFLV2_HD QflGradients<V> gradients(const JointScore<V>& j, V y) const {
        return qfl_gradients<FORM>(j, y, modulation);
    }
    template <class V> GFLV2_HD QflGradients<V> negative_gradients(const JointScore<V>& j) const {
        return qfl_negative_gradients<FORM>(j, modulation);
    }

    // J^β, for a small J: what small_loss(J) is multiplied by.
    template <class V> static GFLV2_HD V small_factor(V joint) { return joint * joint; }
    template <class V> static GFLV2_HD QflSmallGradients<V> small_parts(V odds, V score, V rest, V upstream, V& joint) {
        return qfl_small_parts<FORM, S>(odds, score, rest, upstream, joint);
    }
};

GFLV2_END
