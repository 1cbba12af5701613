// Where the points lie, and how distances to the four sides become a box. Sides: left, top, right, bottom.
#pragma once

#include <cstdint>

#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

// Coordinate of cell `index` along one axis: (index + offset)·stride.
template <class S> GFLV2_HD S cell_point(std::int64_t index, S offset, S stride) {
    return (S(index) + offset) * stride;
}

// Coordinate of a box's side: the point minus the distance for left and top, plus for right and bottom.
template <class S> GFLV2_HD S box_side(S point, S distance, S stride, int side) {
    return side < 2 ? point - distance * stride : point + distance * stride;
}

// ∂(coordinate of the side)/∂distance
template <class S> GFLV2_HD S box_side_derivative(S stride, int side) { return side < 2 ? -stride : stride; }

// The same in units of the stride.
template <class V> GFLV2_HD V side_at(V cell, V distance, int side) {
    return side < 2 ? V(cell - distance) : V(cell + distance);
}

// The distances as a box.
template <class V> GFLV2_HD void box_of_distances(const V* cell, const V* distance, V* box) {
    each<4>(4, [&](int side) { box[side] = side_at(cell[side % 2], distance[side], side); });
}

GFLV2_END
