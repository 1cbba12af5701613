// The arithmetic of one box of `atss` (Adaptive Training Sample Selection, arXiv 1912.02424): its nearest points on a
// level, their IoUs, its threshold, which of them are positive. Comparisons hang on every bit here, so nothing may be
// fused: -ffp-contract=off, -fmad=false.
//
// Nearest points: by squared distance, fl(fl(dx²) + fl(dy²)) in float32; of equal ones the lower flat index. On a grid
// the search looks at a window of cells round the centre, as large as is usually enough, and then proves its result:
// along an axis the rounded dx² never falls on the way from the centre outwards (rounding is monotone), so the cells
// just beyond the four edges bound all that lies outside. Where the bound is not above the farthest candidate a larger
// window is searched, in the end the whole level. 2·topk − 1 cells a side are enough unless distances tie by rounding:
// a cell farther out along an axis has topk nearer ones between itself and the centre. Such ties are those of boxes
// very far outside the image.
//
// V is a number (a CUDA thread) or a vector of numbers (one box in each lane of a SIMD register), I the integers of its
// size. A cell is named by row·2^16 + column, so that its coordinates need no division; a point of a list by its index.
#pragma once

#include <cstdint>

#include "gflv2/api/atss.hpp"
#include "gflv2/lanes.hpp"
#include "gflv2/macros.hpp"
#include "gflv2/math.hpp"

GFLV2_BEGIN

constexpr std::int32_t no_point = 0x7fffffff;          // distance of an empty place in a list
constexpr std::int32_t ignored_distance = 0x5a0e1bca;  // bits of 1e16f: a point that an ignore box covers
constexpr float infinite = __builtin_huge_valf();

// How many boxes of an image exist.
GFLV2_HD std::int64_t boxes_of(const AtssImage& image) {
    if (!image.limit) return image.count;
    const std::int64_t limit = *image.limit;
    return limit < 0 ? 0 : limit > image.count ? image.count : limit;
}

// How many points of a level an image has.
GFLV2_HD int cells_of(const AtssArguments& a, const AtssImage& image, int level) {
    return a.level[level].points ? a.level[level].width : image.rows[level] * image.columns[level];
}

// Index within the level of the point of that name.
GFLV2_HD std::int32_t index_of(const AtssLevel& level, std::int32_t name) {
    return level.points ? name : (name >> 16) * level.width + (name & 0xffff);
}

// --- step 1: the nearest points ---

// The K nearest points so far, nearest first, in registers.
template <class V, int K> struct NearestList {
    integers_t<V> distances[K], names[K];
    GFLV2_HD int size() const { return K; }
    GFLV2_HD integers_t<V>& distance(int n) { return distances[n]; }
    GFLV2_HD integers_t<V>& name(int n) { return names[n]; }
};

// The same in memory, for a K that the compiler does not know: first the distances, then the names, `step` apart.
template <class V> struct NearestList<V, 0> {
    integers_t<V>* memory;
    int count, step;
    GFLV2_HD int size() const { return count; }
    GFLV2_HD integers_t<V>& distance(int n) { return memory[n * step]; }
    GFLV2_HD integers_t<V>& name(int n) { return memory[(count + n) * step]; }
};

template <int K, class V> GFLV2_HD void clear(NearestList<V, K>& list) {
    each<K>(list.size(), [&](int n) {
        list.distance(n) = integers_t<V>{} + no_point;
        list.name(n) = integers_t<V>{};
    });
}

// Points must come in the order of their indices: of equal distances the one that came first stays in front.
template <int K, class V> GFLV2_HD void insert(NearestList<V, K>& list, integers_t<V> distance, integers_t<V> name) {
    using I = integers_t<V>;
    each<K>(list.size(), [&](int i) {
        const int n = list.size() - 1 - i;
        const auto here = distance < list.distance(n);
        I new_distance = choose(here, distance, I(list.distance(n))), new_name = choose(here, name, I(list.name(n)));
        if (n > 0) {
            const auto before = distance < list.distance(n - 1);
            new_distance = choose(before, I(list.distance(n - 1)), new_distance);
            new_name = choose(before, I(list.name(n - 1)), new_name);
        }
        list.distance(n) = new_distance;
        list.name(n) = new_name;
    });
}

// Bits of dx² + dy²; the squared distances order as these integers do.
template <class V> GFLV2_HD integers_t<V> squared_distance(V dx, V dy) {
    const integers_t<V> bits = bits_of(V(dx * dx + dy * dy));
#if defined(__CUDA_ARCH__)
    return bits < no_point ? bits : no_point - 1;  // a GPU's NaN is no_point
#else
    return bits;
#endif
}

// One level of one image: a grid of rows × columns valid cells.
struct AtssGrid {
    std::int32_t rows, columns;
    float stride, per_stride, offset;
};

GFLV2_HD AtssGrid grid_of(const AtssArguments& a, const AtssImage& image, int level) {
    return {image.rows[level], image.columns[level], a.level[level].stride, a.level[level].per_stride, a.offset};
}

template <class V> GFLV2_HD V coordinate(integers_t<V> cell, const AtssGrid& grid) {
    return (number(cell) + grid.offset) * grid.stride;
}

// Cells a side of the first window: a cell outside is at least half of it away, and a circle of topk cells, however it
// lies on the grid, has a radius below 0.62·√topk (4 × 4 cells for the usual nine).
GFLV2_HD int first_window(int topk) {
    int size = 2;
    while (20 * size * size < 31 * topk) ++size;
    return size;
}

GFLV2_HD int next_window(int size, int topk) { return size < 2 * topk - 1 ? 2 * topk - 1 : 8 * size; }

// The window along one axis, and bounds of dx²: of what lies before and after it, and of all cells of the axis.
template <class V> struct Window {
    integers_t<V> first;
    int size;
    V before, after, least;

    GFLV2_HD Window(V centre, int wanted, int cells, const AtssGrid& grid) {
        using I = integers_t<V>;
        size = wanted < cells ? wanted : cells;
        V start = centre * grid.per_stride - grid.offset - 0.5f * float(size - 2);
        start = minimum(maximum(start, V{}), V{} + float(cells - size));  // a NaN becomes 0
        first = truncated(start);
        before = bound(V(centre - coordinate<V>(I(first - 1), grid)), first > 0);
        after = bound(V(coordinate<V>(I(first + size), grid) - centre), first < cells - size);
        least = minimum(before, after);
        for (int n = 0; n < size; ++n) {
            const V d = centre - coordinate<V>(I(first + n), grid);
            least = minimum(least, V(d * d));
        }
    }

    // Farther out than a cell on the centre's other side nothing is nearer. 0, which proves nothing, where the cell is
    // not on that side; infinite where there is none.
    static GFLV2_HD V bound(V outwards, mask_t<V> exists) {
        return choose(exists, choose(outwards > V{}, V(outwards * outwards), V{}), V{} + infinite);
    }
};

// Fills the list from a window of `size` cells a side, and says whether this proved to be the list of the whole grid.
// ignored(row, column) → mask; `ignoring`: may it be true anywhere?
template <int K, class V, class Ignored>
GFLV2_HD mask_t<V> search_window(const AtssGrid& grid, V x, V y, int size, NearestList<V, K>& list, bool ignoring,
                                 const Ignored& ignored) {
    using I = integers_t<V>;
    const Window<V> across(x, size, grid.columns, grid), down(y, size, grid.rows, grid);
    // Before the search: so that these numbers need no registers during it.
    V outside = minimum(V(across.before + down.least), V(across.after + down.least));
    outside = minimum(outside, minimum(V(down.before + across.least), V(down.after + across.least)));
    if (ignoring) outside = minimum(outside, V(V{} + value_of(ignored_distance)));
    clear(list);
    for (int r = 0; r < down.size; ++r) {
        const I row = down.first + r;
        const V dy = y - coordinate<V>(row, grid);
        for (int c = 0; c < across.size; ++c) {
            const I column = across.first + c;
            const V dx = x - coordinate<V>(column, grid);
            const I distance = choose(ignored(row, column), I{} + ignored_distance, squared_distance(dx, dy));
            // Some lane of a vector nearly always has a nearer point.
            if (Lanes<V>::one && !any(distance < list.distance(list.size() - 1))) continue;
            insert(list, distance, I(row * 65536 + column));
        }
    }
    if (across.size == grid.columns && down.size == grid.rows) return (x == x) | (x != x);
    return value_of(I(list.distance(list.size() - 1))) < outside;  // false for a list that is not full: that is a NaN
}

// One box: windows that grow until one is proven.
template <int K, class Ignored>
GFLV2_HD void search_grid(const AtssGrid& grid, float x, float y, int topk, NearestList<float, K>& list, bool ignoring,
                          const Ignored& ignored) {
    int size = first_window(topk);
    while (!search_window(grid, x, y, size, list, ignoring, ignored)) size = next_window(size, topk);
}

// Points anywhere, (count, 2) in pixels: all are looked at. ignored: (count,), or null.
template <int K, class V>
GFLV2_HD void search_points(const float* points, int count, V x, V y, NearestList<V, K>& list,
                            const std::uint8_t* ignored) {
    using I = integers_t<V>;
    clear(list);
    for (int p = 0; p < count; ++p) {
        const V dx = x - points[2 * std::int64_t(p)], dy = y - points[2 * std::int64_t(p) + 1];
        const I distance = ignored && ignored[p] ? I{} + ignored_distance : squared_distance(dx, dy);
        if (any(distance < list.distance(list.size() - 1))) insert(list, distance, I(I{} + p));
    }
}

// --- step 2: IoU and threshold ---

template <class V> struct AtssBox {
    V x1, y1, x2, y2;
    GFLV2_HD mask_t<V> complete() const { return (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2); }  // no NaN
    GFLV2_HD V centre_x() const { return (x1 + x2) * 0.5f; }
    GFLV2_HD V centre_y() const { return (y1 + y2) * 0.5f; }
};

// Intersection of a box with the square anchor of a point. In the order of the arguments 0 wins against a negative
// number and a NaN against 0.
template <class V> GFLV2_HD V anchor_overlap(V x, V y, float half, const AtssBox<V>& box) {
    const V width = minimum(V(x + half), box.x2) - maximum(V(x - half), box.x1);
    const V height = minimum(V(y + half), box.y2) - maximum(V(y - half), box.y1);
    return maximum(V{}, width) * maximum(V{}, height);
}

template <class V> GFLV2_HD V anchor_area(V x, V y, float half) {
    return (V(x + half) - V(x - half)) * (V(y + half) - V(y - half));
}

template <class V> GFLV2_HD V anchor_iou(V x, V y, float half, const AtssBox<V>& box) {
    const V common = anchor_overlap(x, y, half, box);
    const V whole = anchor_area(x, y, half) + (box.x2 - box.x1) * (box.y2 - box.y1) - common;
    return common / maximum(V(V{} + 1e-6f), whole);
}

// Mean + unbiased standard deviation of iou(0), …, iou(count − 1), count > 1: two passes in double, in this order,
// rounded once.
template <class Get> GFLV2_HD auto iou_threshold(int count, const Get& iou) {
    using Wide = decltype(widened(iou(0)));
    Wide sum{};
    for (int n = 0; n < count; ++n) sum = sum + widened(iou(n));
    const Wide mean = sum / double(count);
    Wide squares{};
    for (int n = 0; n < count; ++n) {
        const Wide deviation = widened(iou(n)) - mean;
        squares = squares + deviation * deviation;
    }
    return narrowed(mean + root(squares / double(count - 1)));
}

// --- step 3: positive? ---

// A point more than 0.01 px inside every side, whose IoU reaches the threshold. A NaN anywhere is not.
template <class V> GFLV2_HD mask_t<V> is_positive(V x, V y, const AtssBox<V>& box, V iou, V threshold) {
    const V margin = V{} + 0.01f;
    return (iou >= threshold) & (V(x - box.x1) > margin) & (V(y - box.y1) > margin) & (V(box.x2 - x) > margin) &
           (V(box.y2 - y) > margin);
}

// --- ignore boxes ---

// Does one of the image's ignore boxes cover more than the threshold of the anchor's area?
GFLV2_HD bool is_ignored(float x, float y, float half, const AtssImage& image, float threshold) {
    const float area = maximum(1e-6f, anchor_area(x, y, half));
    for (std::int64_t n = 0; n < image.ignore_count; ++n) {
        const float* at = image.ignore_boxes + 4 * n;
        if (anchor_overlap(x, y, half, AtssBox<float>{at[0], at[1], at[2], at[3]}) / area > threshold) return true;
    }
    return false;
}

// The same for a cell of a level, or a point of its list, which is one row.
GFLV2_HD bool is_ignored(const AtssArguments& a, const AtssImage& image, int l, int row, int column) {
    const AtssLevel& level = a.level[l];
    const AtssGrid grid = grid_of(a, image, l);
    const float x = level.points ? level.points[2 * std::int64_t(column)] : coordinate<float>(column, grid);
    const float y = level.points ? level.points[2 * std::int64_t(column) + 1] : coordinate<float>(row, grid);
    return is_ignored(x, y, level.half, image, a.ignore_threshold);
}

GFLV2_END
