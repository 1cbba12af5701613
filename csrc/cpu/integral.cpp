// `integral` on a CPU: forward and backward, one pass over the logits each. The arithmetic is gflv2/integral.hpp's, with
// one point in each lane.

#include <algorithm>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tiles.hpp"
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

template <class S> S scale_of(const IntegralArguments& arguments, int level) {
    return arguments.scales ? static_cast<const S*>(arguments.scales)[level] : S(1);
}

// One value per side and point of a task, with room for the last tile's unused lanes.
template <class S> struct alignas(64) TaskValues {
    S side[4][points_per_task + lanes<S>];
};

template <class T, int BINS> void forward_task(const IntegralArguments& arguments, const Task& task) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const Level& level = arguments.levels.level[task.level];
    const S* projection = static_cast<const S*>(arguments.projection);
    const S scale = scale_of<S>(arguments, task.level);

    // 1. Distances, side by side.
    TaskValues<S> distances;
    each_run(level, task, false, [&](std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t step, auto...) {
        for (int side = 0; side < 4; ++side) {
            const T* at = static_cast<const T*>(level.logits) + offset + side * level.strides.side;
            S* to = distances.side[side] + (first - task.first);
            for (std::int64_t i = 0; i < count; i += n) {
                V tile[BINS > 0 ? BINS : max_bins];
                load_tile<BINS>(tile, at + i * step, step, level.strides.bin, arguments.bins, int(count - i < n ? count - i : n));
                NoExponentials none;
                const Softmax<V> softmax = softmax_moment<BINS, V>(tile, arguments.bins, scale, projection, none);
                store(to + i, V(softmax.moment / softmax.total));
            }
        }
    });

    // 2. Boxes, where wanted.
    const std::int64_t count = task.last - task.first;
    if (arguments.decode) {
        const TaskPoints<S> points(arguments, task);
        for (int side = 0; side < 4; ++side)
            for (std::int64_t i = 0; i < count; ++i)
                distances.side[side][i] = box_side(points.along[side % 2][i], distances.side[side][i], points.stride[i], side);
    }

    // 3. Sides become the last axis of the result.
    S* out = static_cast<S*>(arguments.out) + 4 * (task.image * arguments.points + level.first_point + task.first);
    std::int64_t i = 0;
    for (; i + n <= count; i += n) {
        const V four[4] = {
            load(distances.side[0] + i), load(distances.side[1] + i), load(distances.side[2] + i), load(distances.side[3] + i)};
        store_interleaved(out + 4 * i, four);
    }
    for (; i < count; ++i)
        for (int side = 0; side < 4; ++side) out[4 * i + side] = distances.side[side][i];
}

// Sums over the points of a task: element 0 for the level's scale, then one per bin for the projection.
constexpr int sums_per_task = 1 + max_bins;

template <class T, int BINS, bool PROJECTION>
void backward_task(const IntegralArguments& arguments, const Task& task, double* sums) {
    using S = compute_t<T>;
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    const Level& level = arguments.levels.level[task.level];
    const S* projection = static_cast<const S*>(arguments.projection);
    const S scale = scale_of<S>(arguments, task.level);
    const std::int64_t points = task.last - task.first;

    // 1. Upstream gradient of each distance, side by side; 0 in the lanes past the end, which so add nothing to a sum.
    TaskValues<S> upstream;
    const S* grad_out = static_cast<const S*>(arguments.grad_out) + 4 * (task.image * arguments.points + level.first_point + task.first);
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
            for (std::int64_t i = 0; i < points; ++i) upstream.side[side][i] *= box_side_slope(where.stride[i], side);
    }

    // 2. Gradients of the logits, and the sums.
    double scale_sum = 0;
    double projection_sums[max_bins] = {};
    each_run(level, task, arguments.grad_logits, [&](std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t step,
                                                     std::int64_t grad_offset, std::int64_t grad_step) {
        for (int side = 0; side < 4; ++side) {
            const T* at = static_cast<const T*>(level.logits) + offset + side * level.strides.side;
            T* grad = static_cast<T*>(level.grad_logits) + grad_offset + side * level.grad_strides.side;
            const S* from = upstream.side[side] + (first - task.first);
            V lane_scale_sums = V{}, lane_projection_sums[PROJECTION ? max_bins : 1] = {};
            for (std::int64_t i = 0; i < count; i += n) {
                const int used = int(count - i < n ? count - i : n);
                V tile[BINS > 0 ? BINS : max_bins], slopes[BINS > 0 ? BINS : max_bins];
                load_tile<BINS>(tile, at + i * step, step, level.strides.bin, arguments.bins, used);
                V gradient = load(from + i);
                if (used < n)
                    for (int lane = used; lane < n; ++lane) gradient[lane] = 0;
                KeptExponentials<V, (BINS > 0 ? BINS : max_bins)> exponentials;
                const Softmax<V> softmax = softmax_moment<BINS, V>(tile, arguments.bins, scale, projection, exponentials);
                lane_scale_sums += softmax_moment_backward<BINS, PROJECTION, V>(
                    tile, arguments.bins, scale, projection, exponentials, softmax, gradient,
                    [&](int bin, V slope) { slopes[bin] = slope; },
                    [&](int bin, V weight) { lane_projection_sums[bin] += weight; });
                if (arguments.grad_logits)
                    store_tile<BINS>(grad + i * grad_step, slopes, grad_step, level.grad_strides.bin, arguments.bins, used);
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
    parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) { forward_task<T, BINS>(arguments, tasks[i]); });
}

template <class T, int BINS> void backward(const IntegralArguments& arguments, int threads) {
    using S = compute_t<T>;
    const std::vector<Task> tasks = list_tasks(arguments.levels, arguments.batch);
    const bool projection = arguments.grad_projection != nullptr;
    const std::size_t width = projection ? sums_per_task : 1;
    std::vector<double> sums(tasks.size() * width);
    parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) {
        double* to = sums.data() + i * width;
        // A projection that needs a gradient is rare: the generic code serves every number of bins.
        projection ? backward_task<T, 0, true>(arguments, tasks[i], to) : backward_task<T, BINS, false>(arguments, tasks[i], to);
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

using Kernel = void (*)(const IntegralArguments&, int);

// 17 and 33 bins as constants in the types that matter; float64 serves gradient checks.
template <class T> Kernel forward_kernel(int bins) {
    return bins == 17 ? forward<T, 17> : bins == 33 ? forward<T, 33> : forward<T, 0>;
}
template <class T> Kernel backward_kernel(int bins) {
    return bins == 17 ? backward<T, 17> : bins == 33 ? backward<T, 33> : backward<T, 0>;
}

}  // namespace

void integral_forward(const IntegralArguments& arguments, int threads) {
    switch (arguments.dtype) {
        case Dtype::float32: return forward_kernel<float>(arguments.bins)(arguments, threads);
        case Dtype::float16: return forward_kernel<half>(arguments.bins)(arguments, threads);
        case Dtype::bfloat16: return forward_kernel<bfloat16>(arguments.bins)(arguments, threads);
        case Dtype::float64: return forward<double, 0>(arguments, threads);
    }
}

void integral_backward(const IntegralArguments& arguments, int threads) {
    switch (arguments.dtype) {
        case Dtype::float32: return backward_kernel<float>(arguments.bins)(arguments, threads);
        case Dtype::float16: return backward_kernel<half>(arguments.bins)(arguments, threads);
        case Dtype::bfloat16: return backward_kernel<bfloat16>(arguments.bins)(arguments, threads);
        case Dtype::float64: return backward<double, 0>(arguments, threads);
    }
}

GFLV2_END
