// The box losses of `gfl_loss` on a CPU, and what they add to the gradient of the box logits. A task gathers the points
// that count and computes them with one point in each lane. The arithmetic is gflv2/gfl_loss.hpp's.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/dgqp_backward.hpp"
#include "cpu/gathered.hpp"
#include "cpu/kernels.hpp"
#include "cpu/logarithm.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/gfl_loss.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

template <class T> struct BoxLosses {
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
        const T* const logits = static_cast<const T*>(level.logits) + task.image * level.strides.image;
        const S stride = S(level.stride), scale = scale_of<S>(a.scales, task.level);
        const S* const projection = static_cast<const S*>(a.projection);
        const S* const weights = static_cast<const S*>(a.weights) + base;
        S* const sides = static_cast<S*>(a.sides) + 8 * base;

        // 1. Which points count; the others get zeros.
        std::fill_n(sides + 8 * task.first, 8 * count, S(0));
        std::vector<std::int32_t> positive;
        for (std::int64_t p = task.first; p < task.last; ++p)
            if (weights[p] > S(0)) positive.push_back(std::int32_t(p));

        Sums sums{};
        each_gathered<S>(level, positive, [&](const Gathered<S>& points) {
            // 2. The target box, in units of the stride.
            V cell[2], target[4], distance[4], gradient[4], weight, dfl = V{};
            points.cells(S(a.offset), cell);
            const S* at[n];
            for (int lane = 0; lane < n; ++lane)
                at[lane] = static_cast<const S*>(a.boxes) + 4 * (base + points.point[lane]);
            gather_boxes(at, target);
            for (int lane = 0; lane < n; ++lane) weight[lane] = weights[points.point[lane]];

            // 3. The distances, and DFL side by side.
            std::int64_t offsets[n];
            points.offsets(level.strides, offsets);
            for (int side = 0; side < 4; ++side) {
                V row[max_bins];
                gather_row(logits + side * level.strides.side, offsets, level.strides.bin, a.bins, row);
                target[side] /= stride;
                const V bin = target_bin<S>(cell[side % 2], target[side], side, projection[0],
                                            projection[1] - projection[0], a.bins);
                const BoxSide<V> read = read_box_side<0, V>(row, a.bins, scale, projection, bin);
                distance[side] = read.distance;
                dfl += read.dfl;
                for (int lane = 0; lane < points.used; ++lane) sides[8 * points.point[lane] + 2 * side + 1] = bin[lane];
            }

            // 4. GIoU.
            const V giou = weight * box_loss_of<S>(cell, distance, target, weight, gradient);
            dfl *= weight;
            for (int lane = 0; lane < points.used; ++lane) {
                for (int side = 0; side < 4; ++side) sides[8 * points.point[lane] + 2 * side] = gradient[side][lane];
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
        const double normaliser = double(static_cast<const S*>(a.normalisers)[1]);
        *static_cast<S*>(a.losses[0]) = S(total.giou * a.factors[0] / normaliser);
        *static_cast<S*>(a.losses[1]) = S(total.dfl * a.factors[1] / normaliser);
    }
};

// The gradient of both losses for the logits, from what forward has saved.
template <class S> class BoxLossGradient final : public AddedGradient<S> {
public:
    using V = vector_t<S>;

    explicit BoxLossGradient(const SavedBoxLoss& box)
        : sides_(static_cast<const S*>(box.sides)), weights_(static_cast<const S*>(box.weights)),
          projection_(static_cast<const S*>(box.projection)) {
        const double normaliser = double(static_cast<const S*>(box.normalisers)[1]);
        const auto of_loss = [&](int loss) {
            return S(double(*static_cast<const S*>(box.grad_losses[loss])) * box.factors[loss] / normaliser);
        };
        giou_ = of_loss(0);
        dfl_ = of_loss(1);
    }

    // Only points with a weight count.
    bool any(std::int64_t first, int used) const override {
        bool found = false;
        for (int i = 0; i < used; ++i) found |= weights_[first + i] > S(0);
        return found;
    }

    void write(std::int64_t first, int used, int side, int bins, const V* exponentials, V inverse,
               V* to) const override {
        const S* const weights = weights_ + first;
        const S* const sides = sides_ + 8 * first + 2 * side;
        BoxRowGradient<V> row{};
        for (int i = 0; i < used; ++i) {
            if (!(weights[i] > S(0))) continue;
            row.of_distance[i] = giou_ * sides[8 * i];
            row.of_dfl[i] = dfl_ * weights[i];
            row.target[i] = sides[8 * i + 1];
        }
        for (int b = 0; b < bins; ++b)
            row.distance = multiply_add(exponentials[b], splat(projection_[b]), row.distance);
        row.distance *= inverse;
        for (int b = 0; b < bins; ++b) to[b] = row.at(b, V(exponentials[b] * inverse), projection_[b]);
    }

private:
    const S* sides_;
    const S* weights_;
    const S* projection_;
    S giou_, dfl_;  // ∂L/∂(weighted sum of the losses)
};

}  // namespace

void box_loss_forward(const BoxLossArguments& a, int threads) {
    with_type(a.dtype, [&](auto zero) { BoxLosses<decltype(zero)>{a}.run(threads); });
}

void box_loss_backward(const BoxLossBackwardArguments& a, int threads) {
    if (a.dgqp.dtype == Dtype::float64) dgqp_backward(a.dgqp, BoxLossGradient<double>(a.box), threads);
    else dgqp_backward(a.dgqp, BoxLossGradient<float>(a.box), threads);
}

GFLV2_END
