// `gfl_targets` on a CPU. A task writes what the points without a box get, gathers its positive ones, and computes them
// with one point in each lane. The arithmetic is gflv2/gfl_targets.hpp's.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/gathered.hpp"
#include "cpu/kernels.hpp"
#include "cpu/logarithm.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/gfl_targets.hpp"
#include "gflv2/instances.hpp"
#include "gflv2/integral.hpp"

GFLV2_BEGIN

namespace {

template <class C, class S>
void largest_classes(const GflTargetsArguments& a, const Task& task, const Gathered<S>& points, S* largest) {
    const Level& level = a.class_levels.level[task.level];
    std::int64_t offsets[lanes<S>];
    points.offsets(level.strides, offsets);
    const C* from = static_cast<const C*>(level.logits) + task.image * level.strides.image;
    for (int lane = 0; lane < lanes<S>; ++lane) largest[lane] = widen(from[offsets[lane]]);
    for (int c = 1; c < a.classes; ++c)
        for (int lane = 0; lane < lanes<S>; ++lane)
            largest[lane] = maximum(S(widen(from[offsets[lane] + c * level.strides.bin])), largest[lane]);
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
        const std::int64_t count = task.last - task.first, rows = image.rows[task.level],
                           columns = image.columns[task.level];
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
        const T* const logits = static_cast<const T*>(level.logits) + task.image * level.strides.image;
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
                V row[max_bins];
                gather_row(logits + side * level.strides.side, offsets, level.strides.bin, a.bins, row);
                distance[side] = distance_of<0, V>(row, a.bins, scale, static_cast<const S*>(a.projection));
            }
            box_of_distances(cell, distance, box);

            // 3. Its target. A box number that does not exist must not lead to a read out of bounds.
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

}  // namespace

void gfl_targets(const GflTargetsArguments& a, int threads) {
    with_type(a.dtype, [&](auto zero) { Targets<decltype(zero)>{a}.run(threads); });
}

GFLV2_END
