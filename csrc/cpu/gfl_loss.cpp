// `gfl_targets` and the box losses of `gfl_loss` on a CPU. Few points are positive: a task writes what the others get, gathers
// its positive ones, and computes them with one point in each lane. The arithmetic is gflv2/gfl_loss.hpp's.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/logarithm.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/gfl_loss.hpp"

GFLV2_BEGIN

namespace {

// A vector of points anywhere in an image's level. Lanes from `used` on repeat the first point.
template <class S> struct Gathered {
    using V = vector_t<S>;
    static constexpr int n = lanes<S>;
    int used;
    std::int64_t point[n], row[n], column[n];  // index in the level, and its cell

    Gathered(const Level& level, const std::int32_t* points, int count) : used(count) {
        for (int lane = 0; lane < n; ++lane) {
            point[lane] = points[lane < count ? lane : 0];
            row[lane] = point[lane] / level.width;
            column[lane] = point[lane] - row[lane] * level.width;
        }
    }

    // Element offsets in the memory of an image.
    void offsets(const Strides& strides, std::int64_t* to) const {
        for (int lane = 0; lane < n; ++lane) to[lane] = row[lane] * strides.y + column[lane] * strides.x;
    }

    void cells(S offset, V* cell) const {
        for (int lane = 0; lane < n; ++lane) {
            cell[0][lane] = S(column[lane]) + offset;
            cell[1][lane] = S(row[lane]) + offset;
        }
    }
};

// A row of logits for each lane.
template <class S> struct alignas(64) GatheredRow {
    static constexpr int n = lanes<S>;
    S at[max_bins][n];

    vector_t<S> operator[](int bin) const { return load(at[bin]); }

    template <class T> void read(const T* from, const std::int64_t* offsets, std::int64_t bin_step, int bins) {
        for (int b = 0; b < bins; ++b)
            for (int lane = 0; lane < n; ++lane) at[b][lane] = widen(from[offsets[lane] + b * bin_step]);
    }
};

// The four sides of a box from and to memory, one box a lane; `scale` multiplies.
template <class S> void gather_boxes(const S* const* at, vector_t<S>* box) {
    for (int lane = 0; lane < lanes<S>; ++lane)
        for (int side = 0; side < 4; ++side) box[side][lane] = at[lane][side];
}

template <class S> S scale_of(const void* scales, int level) { return scales ? static_cast<const S*>(scales)[level] : S(1); }

// Calls run(points) for the gathered points of a task.
template <class S, class Run> void each_gathered(const Level& level, const std::vector<std::int32_t>& points, const Run& run) {
    for (std::size_t i = 0; i < points.size(); i += lanes<S>)
        run(Gathered<S>(level, points.data() + i, int(std::min<std::size_t>(lanes<S>, points.size() - i))));
}

// ---------------------------------------------------------------------------------------------------------------------
// Targets

template <class C, class S>
void largest_classes(const GflTargetsArguments& a, const Task& task, const Gathered<S>& points, S* largest) {
    const Level& level = a.class_levels.level[task.level];
    std::int64_t offsets[lanes<S>];
    points.offsets(level.strides, offsets);
    const C* from = static_cast<const C*>(level.logits) + task.image * level.strides.image;
    for (int lane = 0; lane < lanes<S>; ++lane) largest[lane] = widen(from[offsets[lane]]);
    for (int c = 1; c < a.classes; ++c)
        for (int lane = 0; lane < lanes<S>; ++lane) largest[lane] = maximum(S(widen(from[offsets[lane] + c * level.strides.bin])), largest[lane]);
}

template <class T> struct Targets {
    using S = compute_t<T>;
    using V = vector_t<S>;
    static constexpr int n = lanes<S>;
    const GflTargetsArguments& a;

    // Of a task: the number of positive points and the sum of their weights.
    struct Sums {
        std::int64_t positive;
        double weight;
    };

    // 1. What every point gets, and which points are positive.
    void fill(const Task& task, std::int64_t first, std::vector<std::int32_t>& positive) const {
        const Level& level = a.levels.level[task.level];
        const GflImage& image = a.images[task.image];
        const std::int64_t count = task.last - task.first, rows = image.rows[task.level], columns = image.columns[task.level];
        std::fill_n(a.labels + first, count, std::int64_t(-1));
        std::fill_n(static_cast<S*>(a.boxes) + 4 * first, 4 * count, S(0));
        std::fill_n(static_cast<S*>(a.scores) + first, count, S(0));
        std::fill_n(static_cast<S*>(a.weights) + first, count, S(0));
        S* const label_weights = static_cast<S*>(a.label_weights) + first;
        const std::int64_t* const index = a.index + first;
        for (std::int64_t i = 0; i < count; ++i) label_weights[i] = index[i] >= 0 ? S(1) : S(0);
        if (rows < level.height || columns < level.width)
            for (std::int64_t i = 0; i < count; ++i) {
                const std::int64_t p = task.first + i, row = p / level.width;
                if (row >= rows || p - row * level.width >= columns) label_weights[i] = S(0);
            }
        for (std::int64_t i = 0; i < count; ++i)
            if (index[i] > 0) positive.push_back(std::int32_t(task.first + i));
    }

    void largest(const Task& task, const Gathered<S>& points, S* to) const {
        if constexpr (sizeof(S) == 8) {
            largest_classes<double>(a, task, points, to);
        } else {
            if (a.class_dtype == Dtype::float32) return largest_classes<float>(a, task, points, to);
            if (a.class_dtype == Dtype::float16) return largest_classes<half>(a, task, points, to);
            largest_classes<bfloat16>(a, task, points, to);
        }
    }

    Sums run(const Task& task) const {
        const Level& level = a.levels.level[task.level];
        const std::int64_t base = task.image * a.points + level.first_point;
        std::vector<std::int32_t> positive;
        fill(task, base + task.first, positive);
        Sums sums{std::int64_t(positive.size()), 0};
        const S stride = S(level.stride), scale = scale_of<S>(a.scales, task.level);
        const GflImage& image = a.images[task.image];
        const S* const image_boxes = static_cast<const S*>(image.boxes);
        const S none[4] = {};

        each_gathered<S>(level, positive, [&](const Gathered<S>& points) {
            // 2. The predicted box.
            V cell[2], distance[4], box[4], target[4], pixels[4];
            points.cells(S(a.offset), cell);
            std::int64_t offsets[n];
            points.offsets(level.strides, offsets);
            for (int side = 0; side < 4; ++side) {
                GatheredRow<S> row;
                row.read(static_cast<const T*>(level.logits) + task.image * level.strides.image + side * level.strides.side, offsets,
                         level.strides.bin, a.bins);
                distance[side] = read_box_side<0, V>(row, a.bins, scale, static_cast<const S*>(a.projection), V{}).distance;
            }
            box_of_distances(cell, distance, box);

            // 3. Its target. A number that no box has must not read beyond them.
            const S* at[n];
            for (int lane = 0; lane < n; ++lane) {
                const std::int64_t number = std::min(a.index[base + points.point[lane]], image.count) - 1;
                at[lane] = number < 0 ? none : image_boxes + 4 * number;
            }
            gather_boxes(at, pixels);
            for (int side = 0; side < 4; ++side) target[side] = pixels[side] / stride;
            const V score = giou_value<false, S>(box_pair<S>(box, target, smallest_area<S>));

            // 4. Its weight.
            alignas(64) S classes[n], quality[n];
            largest(task, points, classes);
            for (int lane = 0; lane < n; ++lane)
                quality[lane] = a.quality ? static_cast<const S*>(a.quality)[base + points.point[lane]] : S(0);
            const V weight = joint_weight<S>(load(classes), a.quality != nullptr, load(quality));

            for (int lane = 0; lane < points.used; ++lane) {
                const std::int64_t place = base + points.point[lane];
                a.labels[place] = a.assigned[place];
                for (int side = 0; side < 4; ++side) static_cast<S*>(a.boxes)[4 * place + side] = pixels[side][lane];
                static_cast<S*>(a.scores)[place] = score[lane];
                static_cast<S*>(a.weights)[place] = weight[lane];
                sums.weight += double(weight[lane]);
            }
        });
        return sums;
    }

    void run(int threads) const {
        const std::vector<Task> tasks = list_tasks(a.levels, a.batch);
        std::vector<Sums> sums(tasks.size());
        parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) { sums[i] = run(tasks[i]); });
        // Second stage, in the order of the tasks: the same bits on any number of threads.
        std::vector<std::int64_t> positive(a.batch);
        double weight = 0, number = 0;
        for (std::size_t i = 0; i < tasks.size(); ++i) {
            positive[tasks[i].image] += sums[i].positive;
            weight += sums[i].weight;
        }
        for (const std::int64_t count : positive) number += double(std::max<std::int64_t>(count, 1));
        static_cast<S*>(a.sums)[0] = S(number);
        static_cast<S*>(a.sums)[1] = S(weight);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Box losses

template <class T> struct BoxLoss {
    using S = compute_t<T>;
    using V = vector_t<S>;
    static constexpr int n = lanes<S>;
    const BoxLossArguments& a;

    struct Sums {
        double giou, dfl;
    };

    Sums run(const Task& task) const {
        const Level& level = a.levels.level[task.level];
        const std::int64_t base = task.image * a.points + level.first_point, count = task.last - task.first;
        const S stride = S(level.stride), scale = scale_of<S>(a.scales, task.level);
        const S* const projection = static_cast<const S*>(a.projection);
        const S* const weights = static_cast<const S*>(a.weights) + base;
        S* const slopes = static_cast<S*>(a.slopes) + 8 * base;

        // 1. Which points count; the others have slope 0.
        std::fill_n(slopes + 8 * task.first, 8 * count, S(0));
        std::vector<std::int32_t> positive;
        for (std::int64_t p = task.first; p < task.last; ++p)
            if (weights[p] > S(0)) positive.push_back(std::int32_t(p));

        Sums sums{};
        each_gathered<S>(level, positive, [&](const Gathered<S>& points) {
            // 2. The target box, in units of the stride.
            V cell[2], target[4], distance[4], slope[4], weight, dfl = V{};
            points.cells(S(a.offset), cell);
            const S* at[n];
            for (int lane = 0; lane < n; ++lane) at[lane] = static_cast<const S*>(a.boxes) + 4 * (base + points.point[lane]);
            gather_boxes(at, target);
            for (int lane = 0; lane < n; ++lane) weight[lane] = weights[points.point[lane]];

            // 3. The distances, and DFL side by side.
            std::int64_t offsets[n];
            points.offsets(level.strides, offsets);
            for (int side = 0; side < 4; ++side) {
                GatheredRow<S> row;
                row.read(static_cast<const T*>(level.logits) + task.image * level.strides.image + side * level.strides.side, offsets,
                         level.strides.bin, a.bins);
                target[side] /= stride;
                const V bin = target_bin<S>(cell[side % 2], target[side], side, projection[0], projection[1] - projection[0], a.bins);
                const BoxSide<V> read = read_box_side<0, V>(row, a.bins, scale, projection, bin);
                distance[side] = read.distance;
                dfl += read.dfl;
                for (int lane = 0; lane < points.used; ++lane) slopes[8 * points.point[lane] + 2 * side + 1] = bin[lane];
            }

            // 4. GIoU.
            const V giou = weight * box_loss_of<S>(cell, distance, target, weight, slope);
            dfl *= weight;
            for (int lane = 0; lane < points.used; ++lane) {
                for (int side = 0; side < 4; ++side) slopes[8 * points.point[lane] + 2 * side] = slope[side][lane];
                sums.giou += double(giou[lane]);
                sums.dfl += double(dfl[lane]);
            }
        });
        return sums;
    }

    void run(int threads) const {
        const std::vector<Task> tasks = list_tasks(a.levels, a.batch);
        std::vector<Sums> sums(tasks.size());
        parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) { sums[i] = run(tasks[i]); });
        Sums total{};
        for (const Sums& part : sums) total.giou += part.giou, total.dfl += part.dfl;
        const double normaliser = double(*static_cast<const S*>(a.normaliser));
        static_cast<S*>(a.losses)[0] = S(total.giou * a.factors[0] / normaliser);
        static_cast<S*>(a.losses)[1] = S(total.dfl * a.factors[1] / normaliser);
    }
};

template <template <class> class Kernel, class Arguments> void dispatch(const Arguments& a, int threads) {
    switch (a.dtype) {
        case Dtype::float32: return Kernel<float>{a}.run(threads);
        case Dtype::float16: return Kernel<half>{a}.run(threads);
        case Dtype::bfloat16: return Kernel<bfloat16>{a}.run(threads);
        case Dtype::float64: return Kernel<double>{a}.run(threads);
    }
}

}  // namespace

void gfl_targets(const GflTargetsArguments& a, int threads) { dispatch<Targets>(a, threads); }
void box_loss(const BoxLossArguments& a, int threads) { dispatch<BoxLoss>(a, threads); }

GFLV2_END
