// The arithmetic of one positive point of `gfl_targets`: its IoU target and its weight (arXiv 2006.04388 and
// 2011.12885). Lengths are in units of the stride.
//
//   d_side = Σ_b P_b·project_b (gflv2/integral.hpp),   box = cell ∓ d
//   y = IoU(box, target),   w = σ(max_c c)·σ(r)
//
// V is a number or a vector of numbers, S its element type.
#pragma once

#include "gflv2/giou.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/points.hpp"
#include "gflv2/qfl.hpp"

GFLV2_BEGIN

// w, from the largest class logit of the point and its quality logit.
template <class S, class V> GFLV2_HD V joint_weight(V largest, bool has_quality, V quality) {
    const V score = S(1) / (S(1) + odds_against<S>(largest));
    return has_quality ? V(score * quality_of<S>(quality).score) : score;
}

GFLV2_END
