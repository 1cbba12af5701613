// `dgqp` and `dgqp_statistics` on a CPU. A task goes through its points in batches of tiles (one point in each lane):
// statistics of every side, then the predictor as a product of small matrices; backward, the gradient of the
// statistics, then that of the logits from the exponentials kept for the batch. The arithmetic of a row is
// gflv2/dgqp.hpp's.

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/batch.hpp"
#include "cpu/dgqp_backward.hpp"
#include "cpu/kernels.hpp"
#include "cpu/pages.hpp"
#include "cpu/parallel.hpp"
#include "cpu/predictor.hpp"
#include "cpu/ranks.hpp"
#include "gflv2/dgqp.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

// BINS and TOPK as constants, or 0.
template <class T, int BINS, int TOPK> struct Dgqp {
    using S = compute_t<T>;
    using V = vector_t<S>;
    static constexpr int n = lanes<S>;
    static constexpr int largest_batch = tiles_per_batch<S>;  // a multiple of tiles_together
    static constexpr int most_ranks = TOPK > 0 ? TOPK : max_bins;

    struct KeepAt {
        V* at;
        void keep(int bin, V e) { at[bin] = e; }
        template <class Row> V get(const Row&, int bin, S, V) const { return at[bin]; }
    };

    // What a batch holds between its steps, tile by tile.
    struct Batch {
        V* features;      // (tiles, F)
        V* gradients;     // (tiles, F) ∂L/∂F
        V* exponentials;  // (tiles, 4, R)
        V* tops;          // (tiles, 4, k)
        V* inverses;      // (tiles, 4)
        V* active;        // (tiles, units)
        V* unit_sums;     // (units,)
    };

    const DgqpArguments& a;
    const PackedPredictor<S>* predictor;  // or null: the statistics alone
    const AddedGradient<S>* added;        // or null
    const int features, units;

    Dgqp(const DgqpArguments& arguments, const PackedPredictor<S>* predictor, const AddedGradient<S>* added)
        : a(arguments), predictor(predictor), added(added), features(arguments.features()),
          units(predictor ? predictor->units : 0) {}

    int bins() const { return BINS > 0 ? BINS : a.bins; }
    int topk() const { return TOPK > 0 ? TOPK : a.topk; }
    Statistics statistics() const { return {topk(), a.mean, a.variance}; }

    Batch memory(bool backward) const {
        const std::size_t tiles = largest_batch, kept = backward ? tiles : 0, unit_places = round_up(units, n);
        const std::size_t sizes[] = {tiles * features,  kept * features, kept * 4 * bins(),
                                     kept * 4 * topk(), kept * 4,        kept * units};
        std::size_t total = unit_places;
        for (std::size_t size : sizes) total += size;
        V* at = scratch<S>(total);
        const auto take = [&](std::size_t size) { return std::exchange(at, at + size); };
        Batch batch;
        batch.features = take(sizes[0]);
        batch.gradients = take(sizes[1]);
        batch.exponentials = take(sizes[2]);
        batch.tops = take(sizes[3]);
        batch.inverses = take(sizes[4]);
        batch.active = take(sizes[5]);
        batch.unit_sums = take(unit_places);
        return batch;
    }

    // Of the task's image and level, in (B, A).
    std::int64_t first_point(const Task& task) const {
        return task.image * a.points + a.levels.level[task.level].first_point;
    }

    // --- steps ---

    // Statistics of every side; KEEP: also what backward needs. Tiles from `count` to the next multiple of
    // tiles_together get zeros.
    template <bool KEEP>
    void read_statistics(const Task& task, const PointTile* tiles, int count, const Batch& batch) const {
        const Level& level = a.levels.level[task.level];
        const S scale = scale_of<S>(a.scales, task.level);
        const int per_side = statistics().count();
        for (int side = 0; side < 4; ++side) {  // outside: the hardware follows the bins of one side, not of four
            for (int t = 0; t < count; ++t) {
                V top[most_ranks];
                const T* at = static_cast<const T*>(level.logits) + tiles[t].logits + side * level.strides.side;
                std::conditional_t<KEEP, KeepAt, NoExponentials> exponentials;
                if constexpr (KEEP) exponentials.at = batch.exponentials + (4 * t + side) * bins();
                Peak<V> peak;
                if (tiles[t].step == 1 && tiles[t].used == n) {
                    prefetch_planes<BINS>(at, level.strides.bin, bins());
                    peak = softmax_top<BINS, TOPK, V>(PlaneRow<T>{at, level.strides.bin}, bins(), scale, topk(),
                                                      exponentials, top);
                } else {
                    V tile[max_bins];
                    load_tile(tile, at, tiles[t].step, level.strides.bin, bins(), tiles[t].used);
                    peak = softmax_top<0, TOPK, V>(tile, bins(), scale, topk(), exponentials, top);
                }
                if constexpr (KEEP) {
                    each<TOPK>(topk(), [&](int j) { batch.tops[(4 * t + side) * topk() + j] = top[j]; });
                    batch.inverses[4 * t + side] = peak.inverse;
                }
                V* to = batch.features + t * features + side * per_side;
                statistics_of<TOPK, S>(top, peak.inverse, statistics(), [&](int place, V value) { to[place] = value; });
            }
        }
        std::fill(batch.features + count * features, batch.features + round_up(count, tiles_together) * features, V{});
    }

    void write_quality(const Task& task, const PointTile* tiles, int count, const Batch& batch) const {
        S* out = static_cast<S*>(a.out) + first_point(task);
        for (int first = 0; first < count; first += tiles_together) {
            V quality[tiles_together];
            each<tiles_together>(tiles_together, [&](int t) { quality[t] = splat(predictor->bias2); });
            layer<S>(batch.features + first * features, features, features, predictor->forward.data(), units,
                     [&](int unit, auto& sums) {
                each<outputs_together>(outputs_together, [&](int o) {
                    const V bias = splat(predictor->bias1[unit + o]), weight = splat(predictor->weight2[unit + o]);
                    each<tiles_together>(tiles_together, [&](int t) {
                        quality[t] = multiply_add(maximum(V{}, V(sums[t][o] + bias)), weight, quality[t]);
                    });
                });
            });
            for (int t = 0; t < tiles_together && first + t < count; ++t)
                store_used(out + tiles[first + t].point, quality[t], tiles[first + t].used);
        }
    }

    void write_statistics(const Task& task, const PointTile* tiles, int count, const Batch& batch) const {
        S* out = static_cast<S*>(a.out) + first_point(task) * features;
        for (int t = 0; t < count; ++t)
            store_tile(out + tiles[t].point * features, batch.features + t * features, features, 1, features,
                       tiles[t].used);
    }

    // ∂L/∂F where the statistics are the result.
    void read_gradients(const Task& task, const PointTile* tiles, int count, const Batch& batch) const {
        if (!a.grad_out) {
            std::fill(batch.gradients, batch.gradients + count * features, V{});
            return;
        }
        const S* from = static_cast<const S*>(a.grad_out) + first_point(task) * features;
        for (int t = 0; t < count; ++t)
            load_tile(batch.gradients + t * features, from + tiles[t].point * features, features, 1, features,
                      tiles[t].used);
    }

    // a_h of every tile, and their sums over the points: of a_h to unit_sums, of g to the result.
    V activate(const Task& task, const PointTile* tiles, int count, const Batch& batch) const {
        const S* from = static_cast<const S*>(a.grad_out) + first_point(task);
        V total = V{};
        std::fill(batch.unit_sums, batch.unit_sums + round_up(units, n), V{});
        for (int first = 0; first < count; first += tiles_together) {
            V upstream[tiles_together];
            each<tiles_together>(tiles_together, [&](int t) {
                upstream[t] = first + t < count ? load_used(from + tiles[first + t].point, tiles[first + t].used) : V{};
                total += upstream[t];
            });
            layer<S>(batch.features + first * features, features, features, predictor->forward.data(), units,
                     [&](int unit, auto& sums) {
                each<outputs_together>(outputs_together, [&](int o) {
                    const V bias = splat(predictor->bias1[unit + o]);
                    V sum = V{};
                    each<tiles_together>(tiles_together, [&](int t) {
                        const V value = sums[t][o] + bias > V{} ? upstream[t] : V{};
                        batch.active[(first + t) * units + unit + o] = value;
                        sum += value;
                    });
                    batch.unit_sums[unit + o] += sum;
                });
            });
        }
        return total;
    }

    // ∂L/∂F from a_h.
    void propagate(int count, const Batch& batch) const {
        for (int first = 0; first < count; first += tiles_together)
            layer<S>(batch.active + first * units, units, units, predictor->backward.data(), features,
                     [&](int feature, auto& sums) {
                each<tiles_together>(tiles_together, [&](int t) {
                    each<outputs_together>(outputs_together, [&](int o) {
                        batch.gradients[(first + t) * features + feature + o] = sums[t][o];
                    });
                });
            });
    }

    // ∂L/∂logits from ∂L/∂F; returns the part of ∂L/∂scale.
    double write_gradients(const Task& task, const PointTile* tiles, int count, const Batch& batch) const {
        const Level& level = a.levels.level[task.level];
        const S scale = scale_of<S>(a.scales, task.level);
        const int per_side = statistics().count();
        bool adds[largest_batch];
        for (int t = 0; t < count; ++t)
            adds[t] = added && added->any(first_point(task) + tiles[t].point, tiles[t].used);
        V scale_sum = V{};
        for (int side = 0; side < 4; ++side) {
            for (int t = 0; t < count; ++t) {
                V top[most_ranks], of_ranks[most_ranks], row_sum = V{};
                each<TOPK>(topk(), [&](int j) { top[j] = batch.tops[(4 * t + side) * topk() + j]; });
                const KeepAt exponentials{batch.exponentials + (4 * t + side) * bins()};
                const Peak<V> peak{V{}, batch.inverses[4 * t + side]};
                const V* gradients = batch.gradients + t * features + side * per_side;
                const V sum = statistics_backward<TOPK, S>(top, peak.inverse, statistics(),
                                                           [&](int place) { return gradients[place]; }, of_ranks);
                const T* at = static_cast<const T*>(level.logits) + tiles[t].logits + side * level.strides.side;
                T* to = static_cast<T*>(level.grad_logits) + tiles[t].gradient + side * level.grad_strides.side;
                if (tiles[t].step == 1 && tiles[t].grad_step == 1 && tiles[t].used == n && a.grad_logits && !adds[t]) {
                    const PlaneRow<T> row{at, level.strides.bin};
                    softmax_top_backward<BINS, TOPK, V>(row, bins(), scale, topk(), exponentials, peak, top, of_ranks,
                                                        sum, [&](int bin, V gradient) {
                        row_sum = multiply_add(row[bin], gradient, row_sum);
                        store(to + bin * level.grad_strides.bin, V(gradient * scale));
                        prefetch_write(to + bin * level.grad_strides.bin);
                    });
                } else {
                    V tile[max_bins], result[max_bins], more[max_bins];
                    load_tile(tile, at, tiles[t].step, level.strides.bin, bins(), tiles[t].used);
                    if (adds[t])
                        added->write(first_point(task) + tiles[t].point, tiles[t].used, side, bins(), exponentials.at,
                                     peak.inverse, more);
                    softmax_top_backward<0, TOPK, V>(tile, bins(), scale, topk(), exponentials, peak, top, of_ranks,
                                                     sum, [&](int bin, V gradient) {
                        if (adds[t]) gradient += more[bin];
                        row_sum = multiply_add(tile[bin], gradient, row_sum);
                        result[bin] = gradient * scale;
                    });
                    if (a.grad_logits)
                        store_tile(to, result, tiles[t].grad_step, level.grad_strides.bin, bins(), tiles[t].used);
                }
                scale_sum += row_sum;
            }
        }
        return sum_lanes(scale_sum, n);
    }

    // --- tasks ---

    void forward(const Task& task) const {
        const Batch batch = memory(false);
        each_batch<S>(a.levels.level[task.level], task, false, [&](const PointTile* tiles, int count) {
            read_statistics<false>(task, tiles, count, batch);
            predictor ? write_quality(task, tiles, count, batch) : write_statistics(task, tiles, count, batch);
        });
    }

    // Sums over points, for the predictor's gradients: D_hf in the order of add_outer_products, D_h, Σ g.
    std::int64_t predictor_sums() const { return a.grad_weight1 ? std::int64_t(units) * (features + 1) + 1 : 0; }

    void backward(const Task& task, double* sums, double* scale_sum) const {
        const Batch batch = memory(true);
        *scale_sum = 0;
        each_batch<S>(a.levels.level[task.level], task, a.grad_logits, [&](const PointTile* tiles, int count) {
            read_statistics<true>(task, tiles, count, batch);
            const bool wanted = a.grad_logits || a.grad_scales;
            if (!predictor) {
                read_gradients(task, tiles, count, batch);
            } else {
                const V total = activate(task, tiles, count, batch);
                if (a.grad_weight1) {
                    add_outer_products<S>(batch.active, units, batch.features, features,
                                          int(round_up(count, tiles_together)), sums);
                    double* unit_sums = sums + std::int64_t(units) * features;
                    for (int h = 0; h < units; h += n) {
                        sum_each<S>(batch.unit_sums + h);
                        for (int i = 0; i < n && h + i < units; ++i) unit_sums[h + i] += double(batch.unit_sums[h][i]);
                    }
                    unit_sums[units] += sum_lanes(total, n);
                }
                if (wanted) propagate(count, batch);
            }
            if (wanted) *scale_sum += write_gradients(task, tiles, count, batch);
        });
    }

    // Second stage, group by group in their order: the same bits on any number of threads.
    void write_predictor_gradients(const std::vector<double>& sums, std::int64_t groups, int threads) const {
        const std::int64_t width = predictor_sums(), products = std::int64_t(units) * features;
        const int hidden = predictor->hidden;
        std::vector<double> totals(width);
        constexpr std::int64_t piece = 256;
        parallel_for((width + piece - 1) / piece, threads, [&](std::int64_t p) {
            const std::int64_t first = p * piece, last = std::min(first + piece, width);
            for (std::int64_t group = 0; group < groups; ++group)
                for (std::int64_t i = first; i < last; ++i) totals[i] += sums[group * width + i];
        });
        const S* weight1 = static_cast<const S*>(a.weight1);
        for (int h = 0; h < hidden; ++h) {
            const double weight2 = predictor->weight2[h], unit = totals[products + h];
            double grad_weight2 = double(predictor->bias1[h]) * unit;
            for (int f = 0; f < features; ++f) {
                const std::int64_t place = std::int64_t(h) * features + f;
                const double product = totals[outer_product_index<S>(h, f, features)];
                static_cast<S*>(a.grad_weight1)[place] = S(weight2 * product);
                grad_weight2 += double(weight1[place]) * product;
            }
            static_cast<S*>(a.grad_bias1)[h] = S(weight2 * unit);
            static_cast<S*>(a.grad_weight2)[h] = S(grad_weight2);
        }
        *static_cast<S*>(a.grad_bias2) = S(totals[width - 1]);
    }

    void forward(int threads) const {
        const std::vector<Task> tasks = list_tasks(a.levels, a.batch);
        parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) { forward(tasks[i]); });
    }

    void backward(int threads) const {
        const std::vector<Task> tasks = list_tasks(a.levels, a.batch);
        if (a.grad_logits) expect_gradients(a.levels, a.dtype, a.batch, 4, a.bins);
        // Tasks that share their sums run one after the other. How many do depends on the shapes alone: at most 128
        // groups, fewer where their sums would take more than 64 MB.
        const std::int64_t count = std::int64_t(tasks.size()), width = predictor_sums();
        const std::int64_t most = width ? std::clamp<std::int64_t>((std::int64_t(8) << 20) / width, 8, 128) : count;
        const std::int64_t per_group = std::max<std::int64_t>((count + most - 1) / std::max<std::int64_t>(most, 1), 1);
        const std::int64_t groups = (count + per_group - 1) / per_group;
        std::vector<double> sums(groups * width), scale_sums(count);
        parallel_for(groups, threads, [&](std::int64_t group) {
            for (std::int64_t i = group * per_group; i < std::min((group + 1) * per_group, count); ++i)
                backward(tasks[i], sums.data() + group * width, &scale_sums[i]);
        });
        if (a.grad_scales) {
            double totals[max_levels] = {};
            for (std::int64_t i = 0; i < count; ++i) totals[tasks[i].level] += scale_sums[i];
            for (int l = 0; l < a.levels.count; ++l) static_cast<S*>(a.grad_scales)[l] = S(totals[l]);
        }
        if (width) write_predictor_gradients(sums, groups, threads);
    }
};

// BINS and TOPK where they are constants, else 0.
template <class T, int BINS, int TOPK>
void run(const DgqpArguments& a, bool backward, const AddedGradient<compute_t<T>>* added, int threads) {
    using S = compute_t<T>;
    const auto start = [&](const PackedPredictor<S>* predictor) {
        const Dgqp<T, BINS, TOPK> dgqp(a, predictor, added);
        backward ? dgqp.backward(threads) : dgqp.forward(threads);
    };
    if (a.hidden == 0) return start(nullptr);
    const PackedPredictor<S> predictor(a.features(), a.hidden, static_cast<const S*>(a.weight1),
                                       static_cast<const S*>(a.bias1), static_cast<const S*>(a.weight2),
                                       static_cast<const S*>(a.bias2));
    start(&predictor);
}

// The published heads have 17 bins and k = 4; 33 bins are the common alternative. float64 serves gradient checks.
template <class S> void run(const DgqpArguments& a, bool backward, const AddedGradient<S>* added, int threads) {
    with_type_and_bins(a.dtype, a.topk == 4 ? a.bins : 0, [&](auto zero, auto bins) {
        using T = decltype(zero);
        constexpr int BINS = decltype(bins)::value;
        if constexpr (std::is_same_v<compute_t<T>, S>) run<T, BINS, BINS ? 4 : 0>(a, backward, added, threads);
    });
}

void run(const DgqpArguments& a, bool backward, int threads) {
    with_type(a.dtype, [&](auto zero) { run<compute_t<decltype(zero)>>(a, backward, nullptr, threads); });
}

}  // namespace

void dgqp_forward(const DgqpArguments& a, int threads) { run(a, false, threads); }
void dgqp_backward(const DgqpArguments& a, int threads) { run(a, true, threads); }
void dgqp_backward(const DgqpArguments& a, const AddedGradient<float>& added, int threads) {
    run(a, true, &added, threads);
}
void dgqp_backward(const DgqpArguments& a, const AddedGradient<double>& added, int threads) {
    run(a, true, &added, threads);
}

GFLV2_END
