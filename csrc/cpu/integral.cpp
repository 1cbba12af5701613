// `integral` on a CPU: forward and backward, one pass over the logits each. The arithmetic is gflv2/integral.hpp's,
// with one point in each lane.

#include <algorithm>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/pages.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/instances.hpp"
#include "gflv2/integral.hpp"
#include "gflv2/points.hpp"

GFLV2_BEGIN

namespace {

// The points of a task and their strides, where boxes are wanted.
template <class S> struct TaskPoints {
    S along[2][points_per_task];  // x and y in pixels
    S stride[points_per_task];

    TaskPoints(const IntegralArguments& arguments, const Task& task) {
        const Level& level = arguments.levels.level[task.level];
        for (std::int64_t p = task.first; p < task.last; ++p) {
            const std::int64_t i = p - task.first;
            if (arguments.row_points) {
                along[0][i] = static_cast<const S*>(arguments.row_points)[2 * p];
                along[1][i] = static_cast<const S*>(arguments.row_points)[2 * p + 1];
                stride[i] = static_cast<const S*>(arguments.row_strides)[p];
            } else {
                stride[i] = S(level.stride);
                along[0][i] = cell_point(p % level.width, S(arguments.offset), stride[i]);
                along[1][i] = cell_point(p / level.width, S(arguments.offset), stride[i]);
            }
        }
    }
};

// One value per side and point of a task, with room for the last tile's unused lanes.
template <class S> struct alignas(64) TaskValues {
    S side[4][points_per_task + lanes<S>];
};

// A tile of any layout. Out of line: the instances with a constant number of bins share it.
template <class T>
__attribute__((noinline)) vector_t<compute_t<T>> forward_tile(const T* at, std::int64_t point_step,
                                                              std::int64_t bin_step, int bins, int count,
                                                              compute_t<T> scale, const compute_t<T>* projection) {
    using V = vector_t<compute_t<T>>;
    V tile[max_bins];
    load_tile(tile, at, point_step, bin_step, bins, count);
    return distance_of<0, V>(tile, bins, scale, projection);
}

template <class T, int BINS> void forward_task(const IntegralArguments& arguments, const Task& task) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const Level& level = arguments.levels.level[task.level];
    const S* projection = static_cast<const S*>(arguments.projection);
    const S scale = scale_of<S>(arguments.scales, task.level);

    // 1. Distances, side by side.
    TaskValues<S> distances;
    each_run(level, task, false,
             [&](std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t step, auto...) {
        for (int side = 0; side < 4; ++side) {
            const T* at = static_cast<const T*>(level.logits) + offset + side * level.strides.side;
            S* to = distances.side[side] + (first - task.first);
            for (std::int64_t i = 0; i < count; i += n) {
                const int used = int(count - i < n ? count - i : n);
                V distance;
                if (step == 1 && used == n) {
                    const PlaneRow<T> row{at + i, level.strides.bin};
                    prefetch_planes<BINS>(row.at, row.bin_step, arguments.bins);
                    distance = distance_of<BINS, V>(row, arguments.bins, scale, projection);
                } else {
                    distance =
                        forward_tile(at + i * step, step, level.strides.bin, arguments.bins, used, scale, projection);
                }
                store(to + i, distance);
            }
        }
    });

    // 2. Boxes, where wanted.
    const std::int64_t count = task.last - task.first;
    if (arguments.decode) {
        const TaskPoints<S> points(arguments, task);
        for (int side = 0; side < 4; ++side)
            for (std::int64_t i = 0; i < count; ++i)
                distances.side[side][i] =
                    box_side(points.along[side % 2][i], distances.side[side][i], points.stride[i], side);
    }

    // 3. Sides become the last axis of the result.
    S* out = static_cast<S*>(arguments.out) + 4 * (task.image * arguments.points + level.first_point + task.first);
    std::int64_t i = 0;
    for (; i + n <= count; i += n) {
        const V four[4] = {load(distances.side[0] + i), load(distances.side[1] + i), load(distances.side[2] + i),
                           load(distances.side[3] + i)};
        store_interleaved(out + 4 * i, four);
    }
    for (; i < count; ++i)
        for (int side = 0; side < 4; ++side) out[4 * i + side] = distances.side[side][i];
}

// Sums over the points of a task: element 0 for the level's scale, then one per bin for the projection.
constexpr int sums_per_task = 1 + max_bins;

// A tile of any layout, out of line as above. `grad` may be null; lanes from `count` on must have upstream 0. Returns
// the tile's part of the scale's gradient, and adds to the projection's.
template <class T, bool PROJECTION>
__attribute__((noinline)) vector_t<compute_t<T>> backward_tile(
    const T* at, std::int64_t point_step, std::int64_t bin_step, T* grad, std::int64_t grad_point_step,
    std::int64_t grad_bin_step, int bins, int count, compute_t<T> scale, const compute_t<T>* projection,
    vector_t<compute_t<T>> upstream, vector_t<compute_t<T>>* projection_sums) {
    using V = vector_t<compute_t<T>>;
    V tile[max_bins], gradients[max_bins];
    load_tile(tile, at, point_step, bin_step, bins, count);
    KeptExponentials<V, max_bins> exponentials;
    const Softmax<V> softmax = softmax_moment<0, V>(tile, bins, scale, projection, exponentials);
    const V scale_sum = softmax_moment_backward<0, PROJECTION, V>(tile, bins, scale, projection, exponentials, softmax,
                                                                  upstream, [&](int bin, V gradient) {
        gradients[bin] = gradient;
    }, [&](int bin, V weight) { projection_sums[bin] += weight; });
    if (grad) store_tile(grad, gradients, grad_point_step, grad_bin_step, bins, count);
    return scale_sum;
}

template <class T, int BINS, bool PROJECTION>
void backward_task(const IntegralArguments& arguments, const Task& task, double* sums) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const Level& level = arguments.levels.level[task.level];
    const S* projection = static_cast<const S*>(arguments.projection);
    const S scale = scale_of<S>(arguments.scales, task.level);
    const std::int64_t points = task.last - task.first;

    // 1. Upstream gradient of each distance, side by side; 0 in the lanes past the end, which so add nothing to a sum.
    TaskValues<S> upstream;
    const S* grad_out = static_cast<const S*>(arguments.grad_out) +
                        4 * (task.image * arguments.points + level.first_point + task.first);
    std::int64_t filled = 0;
    for (; filled + n <= points; filled += n) {
        V four[4];
        load_interleaved(grad_out + 4 * filled, four);
        for (int side = 0; side < 4; ++side) store(upstream.side[side] + filled, four[side]);
    }
    for (; filled < points; ++filled)
        for (int side = 0; side < 4; ++side) upstream.side[side][filled] = grad_out[4 * filled + side];
    if (arguments.decode) {
        const TaskPoints<S> where(arguments, task);
        for (int side = 0; side < 4; ++side)
            for (std::int64_t i = 0; i < points; ++i)
                upstream.side[side][i] *= box_side_derivative(where.stride[i], side);
    }

    // 2. Gradients of the logits, and the sums.
    double scale_sum = 0;
    double projection_sums[max_bins] = {};
    each_run(level, task, arguments.grad_logits,
             [&](std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t step,
                 std::int64_t grad_offset, std::int64_t grad_step) {
        for (int side = 0; side < 4; ++side) {
            const T* at = static_cast<const T*>(level.logits) + offset + side * level.strides.side;
            T* grad = static_cast<T*>(level.grad_logits) + grad_offset + side * level.grad_strides.side;
            const S* from = upstream.side[side] + (first - task.first);
            V lane_scale_sums = V{}, lane_projection_sums[PROJECTION ? max_bins : 1] = {};
            for (std::int64_t i = 0; i < count; i += n) {
                const int used = int(count - i < n ? count - i : n);
                V of_distance = load(from + i);
                if (step == 1 && grad_step == 1 && used == n && arguments.grad_logits) {
                    const PlaneRow<T> row{at + i, level.strides.bin};
                    prefetch_planes<BINS>(row.at, row.bin_step, arguments.bins);
                    KeptExponentials<V, (BINS > 0 ? BINS : max_bins)> exponentials;
                    const Softmax<V> softmax =
                        softmax_moment<BINS, V>(row, arguments.bins, scale, projection, exponentials);
                    lane_scale_sums += softmax_moment_backward<BINS, PROJECTION, V>(
                        row, arguments.bins, scale, projection, exponentials, softmax, of_distance,
                        [&](int bin, V gradient) {
                        store(grad + i + bin * level.grad_strides.bin, gradient);
                        prefetch_write(grad + i + bin * level.grad_strides.bin);
                    }, [&](int bin, V weight) { lane_projection_sums[bin] += weight; });
                } else {
                    for (int lane = used; lane < n; ++lane) of_distance[lane] = 0;
                    lane_scale_sums += backward_tile<T, PROJECTION>(
                        at + i * step, step, level.strides.bin, arguments.grad_logits ? grad + i * grad_step : nullptr,
                        grad_step, level.grad_strides.bin, arguments.bins, used, scale, projection, of_distance,
                        lane_projection_sums);
                }
            }
            // Few numbers are added in float before the sum goes on in double.
            scale_sum += sum_lanes(lane_scale_sums, n);
            if constexpr (PROJECTION)
                for (int b = 0; b < arguments.bins; ++b) projection_sums[b] += sum_lanes(lane_projection_sums[b], n);
        }
    });
    sums[0] = scale_sum;
    if constexpr (PROJECTION) std::copy(projection_sums, projection_sums + arguments.bins, sums + 1);
}

template <class T, int BINS> void forward(const IntegralArguments& arguments, int threads) {
    const std::vector<Task> tasks = list_tasks(arguments.levels, arguments.batch);
    parallel_for(std::int64_t(tasks.size()), threads,
                 [&](std::int64_t i) { forward_task<T, BINS>(arguments, tasks[i]); });
}

template <class T, int BINS> void backward(const IntegralArguments& arguments, int threads) {
    using S = compute_t<T>;
    const std::vector<Task> tasks = list_tasks(arguments.levels, arguments.batch);
    const bool projection = arguments.grad_projection != nullptr;
    const std::size_t width = projection ? sums_per_task : 1;
    std::vector<double> sums(tasks.size() * width);
    if (arguments.grad_logits) expect_gradients(arguments.levels, arguments.dtype, arguments.batch, 4, arguments.bins);
    parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) {
        double* to = sums.data() + i * width;
        // A projection that needs a gradient is rare: the generic code serves every number of bins.
        projection ? backward_task<T, 0, true>(arguments, tasks[i], to)
                   : backward_task<T, BINS, false>(arguments, tasks[i], to);
    });
    // Second stage, in the order of the tasks: the same bits on any number of threads.
    if (arguments.grad_scales) {
        double totals[max_levels] = {};
        for (std::size_t i = 0; i < tasks.size(); ++i) totals[tasks[i].level] += sums[i * width];
        for (int l = 0; l < arguments.levels.count; ++l) static_cast<S*>(arguments.grad_scales)[l] = S(totals[l]);
    }
    if (projection) {
        for (int b = 0; b < arguments.bins; ++b) {
            double total = 0;
            for (std::size_t i = 0; i < tasks.size(); ++i) total += sums[i * width + 1 + b];
            static_cast<S*>(arguments.grad_projection)[b] = S(total);
        }
    }
}

// The number of bins as a constant, where it pays (measured on a Zen 5 core, NCHW): 17 bins gain 10 % forward and 20 %
// backward with AVX-512, 35 % with AVX2; 33 bins 15 % with AVX2; the 16 registers of the baseline gain nothing.
constexpr bool wide = GFLV2_VECTOR_BYTES > 16;

template <class Start> void choose(const IntegralArguments& arguments, const Start& start) {
    with_type(arguments.dtype, [&](auto zero) {
        if constexpr (wide && sizeof zero <= 4)
            if (arguments.bins == 17) return start(zero, constant<17>);
        if constexpr (wide && sizeof zero == 4)
            if (arguments.bins == 33) return start(zero, constant<33>);
        start(zero, constant<0>);
    });
}

}  // namespace

void integral_forward(const IntegralArguments& arguments, int threads) {
    choose(arguments,
           [&](auto zero, auto bins) { forward<decltype(zero), decltype(bins)::value>(arguments, threads); });
}

void integral_backward(const IntegralArguments& arguments, int threads) {
    choose(arguments,
           [&](auto zero, auto bins) { backward<decltype(zero), decltype(bins)::value>(arguments, threads); });
}

GFLV2_END
