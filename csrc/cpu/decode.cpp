// `decode` on a CPU. The arithmetic is gflv2/decode.hpp's and gflv2/integral.hpp's, with one point in each lane.
//
//   1. One pass over the class logits: the key of every point.
//   2. The best points of each level: a radix selection, then a sort of those alone.
//   3. The rows of the result: scores and boxes. The points are visited in the order in which they lie in memory, where
//      neighbours share lines, and written to the rows of their rank.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/gathered.hpp"
#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/decode.hpp"
#include "gflv2/instances.hpp"
#include "gflv2/integral.hpp"
#include "gflv2/points.hpp"

GFLV2_BEGIN

namespace {

// --- 1. keys ---

// Is a lane of a comparison's result set?
template <class Mask> GFLV2_HD bool some(Mask mask) {
    if constexpr (sizeof(mask[0]) == sizeof(float)) return any(Ints(mask));
    bool found = false;
    for (unsigned i = 0; i < sizeof(mask) / sizeof(mask[0]); ++i) found |= mask[i] != 0;
    return found;
}

// Vectors of points whose maxima are found together: they stay in registers, and each plane gives a kilobyte at a time.
constexpr int group = GFLV2_VECTOR_BYTES == 64 ? 16 : 8;
// How many classes ahead are prefetched: the planes lie too far apart for the processor to see a pattern.
constexpr int classes_ahead = 8;

// largest[i] = the largest class logit of point i, for GROUP vectors of adjacent points; true if some logit is not a
// number.
template <int GROUP, class T>
GFLV2_HD bool largest_of_planes(const T* at, std::int64_t class_step, int classes, compute_t<T>* largest) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    V best[GROUP];
    auto unordered = V{} != V{};
    each<GROUP>(GROUP, [&](int i) { best[i] = broadcast<V>(S(-INFINITY)); });
    for (int c = 0; c < classes; ++c, at += class_step) {
        if (c + classes_ahead < classes)
            for (unsigned byte = 0; byte < GROUP * n * sizeof(T); byte += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(at + classes_ahead * class_step) + byte);
        each<GROUP>(GROUP, [&](int i) {
            const V logit = load(at + i * n);
            best[i] = maximum(logit, best[i]);
            unordered |= logit != logit;
        });
    }
    each<GROUP>(GROUP, [&](int i) { store(largest + i * n, best[i]); });
    return some(unordered);
}

// The same for one vector of points whose classes are adjacent; classes ≥ lanes.
template <class T>
GFLV2_HD bool largest_of_rows(const T* at, std::int64_t point_step, int classes, compute_t<T>* largest) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    V best[n];
    auto unordered = V{} != V{};
    each<n>(n, [&](int i) {
        const T* row = at + i * point_step;
        const V tail = load(row + classes - n);
        best[i] = tail;
        unordered |= tail != tail;
        for (int c = 0; c + n <= classes; c += n) {
            const V logit = load(row + c);
            best[i] = maximum(logit, best[i]);
            unordered |= logit != logit;
        }
    });
    transpose<S>(best);
    V all = best[0];
    each<n>(n, [&](int i) { all = maximum(best[i], all); });
    store(largest, all);
    return some(unordered);
}

// Any layout, and points with a logit that is not a number: the largest of the others, and whether there is one.
template <class T> bool largest_of_point(const T* at, std::int64_t class_step, int classes, compute_t<T>* largest) {
    bool unordered = false;
    *largest = compute_t<T>(-INFINITY);
    for (int c = 0; c < classes; ++c) {
        const compute_t<T> logit = widen(at[c * class_step]);
        unordered |= logit != logit;
        if (logit > *largest) *largest = logit;
    }
    return unordered;
}

// Points [0, count) at equal steps. Returns whether some logit is not a number; then `largest` may be wrong.
template <class T>
bool largest_of_run(const T* at, std::int64_t point_step, std::int64_t class_step, int classes, std::int64_t count,
                    compute_t<T>* largest) {
    constexpr int n = lanes<compute_t<T>>;
    bool unordered = false;
    std::int64_t i = 0;
    if (count >= n && point_step == 1) {
        for (; i + group * n <= count; i += group * n)
            unordered |= largest_of_planes<group>(at + i, class_step, classes, largest + i);
        for (; i + 4 * n <= count; i += 4 * n)
            unordered |= largest_of_planes<4>(at + i, class_step, classes, largest + i);
        for (; i < count; i += n) {  // the last vector ends with the run
            i = std::min(i, count - n);
            unordered |= largest_of_planes<1>(at + i, class_step, classes, largest + i);
        }
    } else if (count >= n && class_step == 1 && classes >= n) {
        for (; i < count; i += n) {
            i = std::min(i, count - n);
            unordered |= largest_of_rows(at + i * point_step, point_step, classes, largest + i);
        }
    }
    for (; i < count; ++i) unordered |= largest_of_point(at + i * point_step, class_step, classes, largest + i);
    return unordered;
}

template <class T> void key_task(const DecodeArguments& a, const Task& task) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const Level& level = a.class_levels.level[task.level];
    const std::int64_t count = task.last - task.first, step = level.strides.bin;
    const T* const logits = static_cast<const T*>(level.logits);

    // 1. The largest logit of each point.
    alignas(64) S largest[points_per_task + n];
    bool unordered = false;
    each_run(level, task, false,
             [&](std::int64_t first, std::int64_t run, std::int64_t offset, std::int64_t point_step, auto...) {
        unordered |= largest_of_run(logits + offset, point_step, step, a.classes, run, largest + (first - task.first));
    });
    for (std::int64_t i = count; i < count + n; ++i) largest[i] = 0;

    // 2. Its key.
    const std::int64_t first = task.image * a.points + level.first_point + task.first;
    S* const keys = static_cast<S*>(a.keys) + first;
    const S* const quality = a.quality ? static_cast<const S*>(a.quality) + first : nullptr;
    for (std::int64_t i = 0; i < count; i += n) {
        const int used = int(std::min<std::int64_t>(n, count - i));
        V factor = broadcast<V>(S(1));
        if (quality) {
            V logit{};
            std::memcpy(&logit, quality + i, used * sizeof(S));
            factor = sigmoid(logit);
        }
        const V key = joint_key(load(largest + i), factor);
        std::memcpy(keys + i, &key, used * sizeof(S));
    }

    // 3. Again, one by one, where a logit is not a number.
    if (unordered)
        each_run(level, task, false,
                 [&](std::int64_t from, std::int64_t run, std::int64_t offset, std::int64_t point_step, auto...) {
            for (std::int64_t i = 0; i < run; ++i) {
                const std::int64_t to = from - task.first + i;
                S best;
                if (!largest_of_point(logits + offset + i * point_step, step, a.classes, &best)) continue;
                const V factor = quality ? sigmoid(broadcast<V>(quality[to])) : broadcast<V>(S(1));
                keys[to] = -std::abs(joint_key(broadcast<V>(best), factor)[0]);
            }
        });
}

// --- 2. selection ---

// A point of a level, and the row of that level in the result to which it goes.
struct Chosen {
    std::int32_t point, row;
};

// The `wanted` points of the highest keys, of equal ones the lower, in the order of their indices.
template <class S> void select(const S* keys, std::int64_t count, std::int64_t wanted, Chosen* chosen) {
    using Rank = decltype(rank_of(S()));
    constexpr int digit = 11, bits = 8 * sizeof(Rank);

    // 1. The rank of the last one that is taken, from its highest digit to its lowest; `left` of the points of that
    //    rank are.
    Rank last = 0, known = 0;
    std::int64_t left = wanted;
    for (int place = bits; place > 0;) {
        const int width = std::min(digit, place);
        place -= width;
        std::int64_t histogram[1 << digit] = {};
        for (std::int64_t i = 0; i < count; ++i) {
            const Rank rank = rank_of(keys[i]);
            if ((rank & known) == last) ++histogram[(rank >> place) & ((1u << width) - 1)];
        }
        int value = (1 << width) - 1;
        for (; histogram[value] < left; --value) left -= histogram[value];
        last |= Rank(value) << place;
        known |= Rank((1u << width) - 1) << place;
    }

    // 2. Those above it, and the first of those at it.
    std::vector<std::pair<Rank, std::uint32_t>> order(wanted);
    std::int64_t taken = 0;
    for (std::int64_t i = 0; taken < wanted; ++i) {
        const Rank rank = rank_of(keys[i]);
        if (rank < last || (rank == last && left-- <= 0)) continue;
        chosen[taken].point = std::int32_t(i);
        order[taken] = {Rank(~rank), std::uint32_t(taken)};
        ++taken;
    }

    // 3. Their rows.
    std::sort(order.begin(), order.end());
    for (std::int64_t row = 0; row < wanted; ++row) chosen[order[row].second].row = std::int32_t(row);
}

// --- 3. rows ---

// Up to one register of points of one level of one image, and the rows of that level in the result to which they go.
template <class S> struct Points : Gathered<S> {
    std::int64_t to[lanes<S>];
};

// Logits not above this have J at or below the threshold, whatever the quality: with room for the rounding of σ.
template <class S> S smallest_logit(S threshold) {
    return threshold > S(0) && threshold < S(0.9) ? std::log(threshold / (1 - threshold)) - S(1e-3) : -S(INFINITY);
}

// Scores of the points; returns how many rows have one above the threshold.
template <class T>
int write_scores(const DecodeArguments& a, int l, std::int64_t image, const Points<compute_t<T>>& points,
                 std::int64_t first_row) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const Level& level = a.class_levels.level[l];
    const T* const logits = static_cast<const T*>(level.logits) + image * level.strides.image;
    const std::int64_t first = image * a.points + level.first_point, step = level.strides.bin;
    const S threshold = S(a.score_threshold), smallest = smallest_logit(threshold);
    S* const scores = static_cast<S*>(a.scores) + (image * a.rows + first_row) * a.classes;

    // 1. The points with a score above the threshold. Most have none: their logits are not read again.
    std::int64_t all[n], offsets[n];
    points.offsets(level.strides, all);
    S* rows[n];
    S keys[n] = {}, qualities[n] = {};
    int above = 0;
    for (int i = 0; i < points.used; ++i) {
        const S key = std::abs(static_cast<const S*>(a.keys)[first + points.point[i]]);
        S* const row = scores + points.to[i] * a.classes;
        if (!(key > threshold)) {
            std::memset(row, 0, a.classes * sizeof(S));
            continue;
        }
        keys[above] = key;
        if (a.quality) qualities[above] = static_cast<const S*>(a.quality)[first + points.point[i]];
        offsets[above] = all[i];
        rows[above++] = row;
    }
    if (above == 0) return 0;
    for (int i = above; i < n; ++i) offsets[i] = offsets[0];
    const V key = load(keys), quality = a.quality ? sigmoid(load(qualities)) : broadcast<V>(S(1));
    const auto score = [&](V logit, V of_quality, V of_key) {
        return some(logit > smallest) ? kept_score(logit, of_quality, of_key, threshold) : V{};
    };

    // 2. Their scores: class by class with a point in each lane, or where the classes are adjacent, the other way
    //    round.
    for (int c = 0; c < a.classes; c += n) {
        const int width = std::min(n, a.classes - c);
        V tile[n] = {};
        if (step == 1 && width == n) {
            for (int i = 0; i < above; ++i)
                tile[i] = score(load(logits + offsets[i] + c), broadcast<V>(S(quality[i])), broadcast<V>(keys[i]));
        } else {
            for (int i = 0; i < width; ++i) tile[i] = score(gather(logits + (c + i) * step, offsets), quality, key);
            transpose<S>(tile);
        }
        for (int i = 0; i < above; ++i) std::memcpy(rows[i] + c, &tile[i], width * sizeof(S));
    }
    return above;
}

template <class T>
void write_boxes(const DecodeArguments& a, int l, std::int64_t image, const Points<compute_t<T>>& points,
                 std::int64_t first_row) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const Level& level = a.box_levels.level[l];
    const T* const logits = static_cast<const T*>(level.logits) + image * level.strides.image;
    const S* const projection = static_cast<const S*>(a.projection);
    const S scale = scale_of<S>(a.scales, l), stride = S(level.stride);
    const S* const limits = a.image_sizes ? static_cast<const S*>(a.image_sizes) + 2 * image : nullptr;
    const S* const factors = a.scale_factors ? static_cast<const S*>(a.scale_factors) + 2 * image : nullptr;
    const std::int64_t first = image * a.rows + first_row;

    std::int64_t offsets[n];
    points.offsets(level.strides, offsets);
    for (int side = 0; side < 4; ++side) {
        // 1. The logits.
        V row[max_bins];
        gather_row(logits + side * level.strides.side, offsets, level.strides.bin, a.bins, row);

        // 2. Softmax and expectation.
        NoExponentials none;
        const Softmax<V> softmax = softmax_moment<0, V>(row, a.bins, scale, projection, none);
        const V distance = softmax.moment / softmax.total;

        // 3. The side of the box.
        for (int i = 0; i < points.used; ++i) {
            const std::int64_t cell = side % 2 ? points.row[i] : points.column[i];
            S at = box_side(cell_point(cell, S(a.offset), stride), S(distance[i]), stride, side);
            if (limits) at = clipped(at, limits[1 - side % 2]);
            if (factors) at /= factors[side % 2];
            static_cast<S*>(a.boxes)[4 * (first + points.to[i]) + side] = at;
        }

        // 4. The distribution, where it is wanted.
        if (!a.distributions) continue;
        const RecomputedExponentials<V> again;
        for (int b = 0; b < a.bins; ++b) {
            const V probability = again.get(row, b, scale, softmax.largest) / softmax.total;
            for (int i = 0; i < points.used; ++i)
                static_cast<S*>(a.distributions)[(4 * (first + points.to[i]) + side) * a.bins + b] = probability[i];
        }
    }
}

// Rows [first, last) of the points chosen on one level of one image.
struct RowTask {
    int level;
    std::int64_t image, first, last;
};
constexpr std::int64_t rows_per_task = 128;

// --- all of it ---

template <class S> struct Kernels {
    void (*keys)(const DecodeArguments&, const Task&);
    int (*scores)(const DecodeArguments&, int, std::int64_t, const Points<S>&, std::int64_t);
    void (*boxes)(const DecodeArguments&, int, std::int64_t, const Points<S>&, std::int64_t);
};

template <class S> void run(const DecodeArguments& a, const Kernels<S>& kernels, int threads) {
    // 1. Keys.
    const std::vector<Task> tasks = list_tasks(a.class_levels, a.batch);
    parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) { kernels.keys(a, tasks[i]); });

    // 2. The rows of each level, and the points of those levels that have more of them.
    std::int64_t first_row[max_levels + 1] = {};
    std::vector<std::pair<std::int64_t, int>> selections;  // (image, level), the largest levels first
    std::vector<RowTask> row_tasks;
    for (int l = 0; l < a.class_levels.count; ++l) {
        const Level& level = a.class_levels.level[l];
        const std::int64_t rows = rows_of(level, a.topk);
        first_row[l + 1] = first_row[l] + rows;
        for (std::int64_t image = 0; image < a.batch; ++image) {
            if (rows < level.height * level.width) selections.emplace_back(image, l);
            for (std::int64_t first = 0; first < rows; first += rows_per_task)
                row_tasks.push_back({l, image, first, std::min(first + rows_per_task, rows)});
        }
    }
    std::vector<Chosen> chosen(selections.empty() ? 0 : a.batch * a.rows);
    parallel_for(std::int64_t(selections.size()), threads, [&](std::int64_t i) {
        const auto [image, l] = selections[i];
        const Level& level = a.class_levels.level[l];
        select(static_cast<const S*>(a.keys) + image * a.points + level.first_point, level.height * level.width, a.topk,
               chosen.data() + image * a.rows + first_row[l]);
    });

    // 3. The rows.
    std::vector<std::atomic<std::int64_t>> counts(a.batch);
    parallel_for(std::int64_t(row_tasks.size()), threads, [&](std::int64_t i) {
        const RowTask& task = row_tasks[i];
        const Level& level = a.class_levels.level[task.level];
        const bool sorted = rows_of(level, a.topk) < level.height * level.width;
        const std::int64_t first = task.image * a.rows + first_row[task.level];
        constexpr int n = lanes<S>;
        int above = 0;
        for (std::int64_t at = task.first; at < task.last; at += n) {
            Points<S> points{{level, int(std::min<std::int64_t>(n, task.last - at)),
                              [&](int lane) { return sorted ? chosen[first + at + lane].point : at + lane; }},
                             {}};
            for (int lane = 0; lane < points.used; ++lane) {
                points.to[lane] = sorted ? chosen[first + at + lane].row : at + lane;
                a.indices[first + points.to[lane]] = level.first_point + points.point[lane];
            }
            above += kernels.scores(a, task.level, task.image, points, first_row[task.level]);
            kernels.boxes(a, task.level, task.image, points, first_row[task.level]);
        }
        counts[task.image] += above;
    });
    for (std::int64_t image = 0; image < a.batch; ++image) a.counts[image] = counts[image];
}

}  // namespace

void decode(const DecodeArguments& a, int threads) {
    const auto start = [&](auto of_class, auto of_box) {
        using C = decltype(of_class);
        if constexpr (std::is_same_v<compute_t<C>, compute_t<decltype(of_box)>>)
            run<compute_t<C>>(a, {key_task<C>, write_scores<C>, write_boxes<decltype(of_box)>}, threads);
    };
    with_type(a.class_dtype,
              [&](auto of_class) { with_type(a.box_dtype, [&](auto of_box) { start(of_class, of_box); }); });
}

GFLV2_END
