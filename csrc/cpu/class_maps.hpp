// A loss of every class of every point on a CPU, `qfl` and its kind: forward, backward, or both in one pass over the
// score map. What an element is, ELEMENTS says: QflElements (gflv2/qfl.hpp) or FocalElements (gflv2/focal.hpp).
//
// Two ways through a task:
//   points across the lanes   class by class over the task's points: NCHW
//   classes across the lanes  point by point over its classes: channels_last and rows (N, C)
// Every element is computed as a negative, which costs least. The elements of the labels are then computed again, one
// by one.

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/logarithm.hpp"
#include "cpu/loss_reduction.hpp"
#include "cpu/pages.hpp"
#include "cpu/parallel.hpp"
#include "cpu/several.hpp"
#include "cpu/tiles.hpp"
#include "gflv2/instances.hpp"
#include "gflv2/qfl.hpp"

GFLV2_BEGIN
namespace class_maps {

template <class S> using IndexOf = typename VectorOf<S>::index;

// Elements that are converted at once.
constexpr std::int64_t run_length = points_per_task;

// What a pass computes. `both` is less work than one after the other, which compute the same J and the same logarithm
// twice.
enum class Pass { forward, backward, both };

// A point's sums over its classes: of losses, and of ∂(loss)/∂r.
constexpr int loss = 0, quality_gradient = 1, sums = 2;

// f(which), a constant, for each of the sums that a pass needs.
template <class ELEMENTS, Pass PASS, class F> GFLV2_HD void each_sum(const F& f) {
    if constexpr (PASS != Pass::backward) f(std::integral_constant<int, loss>{});
    if constexpr (PASS != Pass::forward && ELEMENTS::form == QflForm::joint)
        f(std::integral_constant<int, quality_gradient>{});
}

// What a task knows of its points, with room for the last vector's unused lanes.
template <class S> struct alignas(64) TaskRows {
    static constexpr int size = points_per_task + lanes<S>;
    using Label = std::conditional_t<sizeof(S) == 4, std::int32_t, std::int64_t>;

    S logit[size], score[size], rest[size];  // of the quality; without one the score is 1
    Label label[size];                       // −1: background
    S sum[sums][size];
    S upstream[size];             // backward: ∂L/∂(loss)
    S upstream_over_score[size];  // where the elements of the labels are on their own: times the negatives' factor
    bool large = false;           // is any quality logit beyond ±large_logit?
    bool labelled = false;        // is any point not background?

    template <class ELEMENTS>
    TaskRows(const typename ELEMENTS::Arguments& a, const ELEMENTS& elements, std::int64_t first, std::int64_t count,
             bool backward) {
        using V = vector_t<S>;
        std::fill(sum[0], sum[0] + sums * size, S(0));
        std::fill(score, score + size, S(1));
        std::fill(label, label + size, Label(-1));
        std::fill(logit, logit + size, S(0));
        if (a.labels)
            for (std::int64_t i = 0; i < count; ++i) {
                const std::int64_t found = a.labels[first + i];
                if (found < 0 || found >= a.classes) continue;
                label[i] = Label(found);
                labelled = true;
            }
        if constexpr (ELEMENTS::form == QflForm::joint) {
            const S* quality = static_cast<const S*>(a.quality) + first;
            std::copy(quality, quality + count, logit);
            for (std::int64_t i = 0; i < count; ++i) large |= logit[i] > large_logit<S> || logit[i] < -large_logit<S>;
            for (std::int64_t i = 0; i < count; i += lanes<S>) {
                const Quality<V> q = quality_of<S>(load(logit + i));
                store(score + i, q.score);
                store(rest + i, q.rest);
            }
        }
        if (!backward) return;
        upstream_of_rows<S>(a.reduction, first, count, upstream);
        for (std::int64_t i = 0; i < count; ++i) {
            if constexpr (ELEMENTS::own_labels) upstream_over_score[i] = upstream[i] * elements.negative;
            else upstream_over_score[i] = upstream[i] / score[i];
        }
    }

    // ∂L/∂(loss of a negative).
    template <class ELEMENTS> const S* upstream_of_negatives() const {
        return ELEMENTS::own_labels ? upstream_over_score : upstream;
    }

    Quality<vector_t<S>> across(std::int64_t i) const { return {load(logit + i), load(score + i), load(rest + i)}; }
    Quality<S> one(std::int64_t i) const { return {logit[i], score[i], rest[i]}; }
    Quality<vector_t<S>> everywhere(std::int64_t i) const {
        using V = vector_t<S>;
        return {broadcast<V>(logit[i]), broadcast<V>(score[i]), broadcast<V>(rest[i])};
    }
};

// Fills the lanes past the end of a run: a score so small that neither loss nor gradient grows by it.
template <class ELEMENTS, class S>
constexpr S padding = ELEMENTS::form == QflForm::probabilities ? S(0) : -far_logit<S>;

// `count` elements as S to `to`, filled up to the end of the last vector.
template <class T, class S> void copy_in(const T* at, std::int64_t step, std::int64_t count, S* to, S filling) {
    constexpr int n = lanes<S>;
    std::int64_t i = 0;
    if (step == 1)
        for (; i + n <= count; i += n) store(to + i, load(at + i));
    for (; i < count; ++i) to[i] = widen(at[i * step]);
    for (; i % n; ++i) to[i] = filling;
}

template <class T, class S> void copy_out(const S* from, T* at, std::int64_t step, std::int64_t count) {
    std::int64_t i = 0;
    if (step == 1)
        for (; i + lanes<S> <= count; i += lanes<S>) store(at + i, load(from + i));
    for (; i < count; ++i) at[i * step] = narrow<T>(from[i]);
}

// Can a run be read, or written, where it lies?
template <class T, class S> bool in_place(std::int64_t step, std::int64_t count) {
    return std::is_same_v<T, S> && step == 1 && count % lanes<S> == 0;
}

// What the elements of a task are, but for those of the labels. usual: negatives, no quality logit of which is large.
// large: negatives of any quality. dense: each has a target of its own.
enum class Kind { usual, large, dense };

// What a vector of elements contributes: its gradient, already multiplied by `upstream`, and its part of TaskRows::sum.
// What a pass does not need is not computed.
template <class V> struct Contribution {
    V gradient;
    V to_sum[sums];
};

template <class ELEMENTS, Kind KIND, Pass PASS, class S, class V>
GFLV2_HD Contribution<V> one_vector(V value, const Quality<V>& quality, const S* y, V upstream,
                                    const ELEMENTS& elements) {
    const JointScore<V> j = joint_score<ELEMENTS::form, (KIND != Kind::usual), S>(value, quality);
    Contribution<V> of_vector{};
    if constexpr (PASS != Pass::forward) {
        QflGradients<V> gradients;
        if constexpr (KIND == Kind::dense) gradients = elements.gradients(j, load(y));
        else gradients = elements.negative_gradients(j);
        of_vector.gradient = gradients.value * upstream;
        of_vector.to_sum[quality_gradient] = gradients.quality;
    }
    if constexpr (PASS != Pass::backward) {
        if constexpr (KIND == Kind::dense) of_vector.to_sum[loss] = elements.value(j, load(y));
        else of_vector.to_sum[loss] = elements.negative_value(j);
    }
    return of_vector;
}

// Small negatives: two passes over a run, the exponentials first. In one pass the chain of dependent operations is
// longer than what a core looks ahead, and more vectors side by side than these would not fit the registers. (Zen 5,
// joint form, backward, nanoseconds for 16 elements: AVX-512 5.4, in one pass 7.3, without groups 13.3; AVX2 11.2, with
// groups of two 15.2.)
constexpr int group = 4;
using Group = Several<group>;

// exp(−c) of `count` class logits, a multiple of the lanes.
__attribute__((noinline)) inline void odds_of(const float* logits, std::int64_t count, float* to) {
    constexpr int n = lanes<float>;
    std::int64_t i = 0;
    for (; i + group * n <= count; i += group * n) store(to + i, odds_against<float>(load_several<group>(logits + i)));
    for (; i < count; i += n) store(to + i, odds_against<float>(load(logits + i)));
}

// of_rows(values of the rows) gives those of the vectors, store(contribution) takes the result. Where one of the scores
// is not small, nothing is stored, and the answer is false.
template <class ELEMENTS, Pass PASS, class OfRows, class Store>
GFLV2_HD bool small_group(const Group& odds, const TaskRows<float>& rows, const OfRows& of_rows, const Store& store) {
    Group joint;
    Contribution<Group> of_vector{};
    if constexpr (PASS == Pass::forward) {
        joint = qfl_small_score(odds, ELEMENTS::form == QflForm::joint ? of_rows(rows.score) : broadcast<Group>(1.0f));
    } else {
        Group score{}, rest{};
        if constexpr (ELEMENTS::form == QflForm::joint) score = of_rows(rows.score), rest = of_rows(rows.rest);
        const QflSmallGradients<Group> parts =
            ELEMENTS::small_parts(odds, score, rest, of_rows(rows.upstream_over_score), joint);
        of_vector.gradient = parts.value;
        if constexpr (ELEMENTS::form == QflForm::joint) of_vector.to_sum[quality_gradient] = rest * parts.t;
    }
    if (!all_below(joint, small_score<float>)) return false;
    if constexpr (PASS != Pass::backward) of_vector.to_sum[loss] = small_loss(joint) * ELEMENTS::small_factor(joint);
    store(of_vector);
    return true;
}

template <Kind KIND, class ELEMENTS> bool may_be_small(const ELEMENTS& elements) {
    return std::is_same_v<typename ELEMENTS::S, float> && KIND == Kind::usual && elements.may_be_small();
}

// Each class of a level is another stretch of memory. While one class is computed, the memory of the next is
// prefetched: `values` and, to be written, `grad` (null: not wanted). The steps are bytes a point.
struct NextClass {
    const char* values;
    std::int64_t step;
    const char* grad;
    std::int64_t grad_step;

    template <Pass PASS> GFLV2_HD void prefetch(std::int64_t point) const {
        __builtin_prefetch(values + point * step);
        if (PASS != Pass::forward) __builtin_prefetch(grad + point * grad_step, 1);
    }
};

// The functions for groups stay apart from the general ones: in one function the constants of both would not fit the
// registers.

// Groups of small negatives from `i` on, of one class of points [first, first + count); returns where it stopped.
template <class ELEMENTS, Pass PASS>
__attribute__((noinline)) std::int64_t small_points(const float* odds, float* to, const NextClass& next_class,
                                                    std::int64_t i, std::int64_t first, std::int64_t count,
                                                    std::int32_t label, TaskRows<float>& rows) {
    constexpr int n = lanes<float>;
    const bool labelled = rows.labelled;
    for (; i + group * n <= count; i += group * n) {
        each<group>(group, [&](int k) { next_class.prefetch<PASS>(i + k * n); });
        const bool done = small_group<ELEMENTS, PASS>(load_several<group>(odds + i), rows, [&](const float* values) {
            return load_several<group>(values + first + i);
        }, [&](Contribution<Group>& of_vector) {
            if constexpr (PASS != Pass::forward) store(to + i, of_vector.gradient);
            each_sum<ELEMENTS, PASS>([&](auto which) {
                Group& added = of_vector.to_sum[which];
                if (labelled)
                    each<group>(group, [&](int k) {
                        const Ints labels = read<Ints>(rows.label + first + i + k * n);
                        added.part[k] = labels == Ints{} + label ? Floats{} : added.part[k];
                    });
                float* const sum = rows.sum[which] + first + i;
                store(sum, load_several<group>(sum) + added);
            });
        });
        if (!done) break;
    }
    return i;
}

// One class of points [first, first + count). `to`: the gradient (backward).
template <class ELEMENTS, Kind KIND, Pass PASS, class S>
void over_points(const S* from, const S* y, S* to, const NextClass& next_class, std::int64_t first, std::int64_t count,
                 std::int64_t label, TaskRows<S>& rows, const ELEMENTS& elements) {
    using V = vector_t<S>;
    const bool small = may_be_small<KIND>(elements) && count >= group * lanes<S>;
    alignas(64) S odds[run_length];
    if constexpr (std::is_same_v<S, float>)
        if (small) odds_of(from, (count + lanes<S> - 1) / lanes<S> * lanes<S>, odds);
    for (std::int64_t i = 0; i < count;) {
        std::int64_t end = count;
        if constexpr (std::is_same_v<S, float>) {
            if (small) {
                i = small_points<ELEMENTS, PASS>(odds, to, next_class, i, first, count, std::int32_t(label), rows);
                end = std::min<std::int64_t>(count, i + group * lanes<S>);
            }
        }
        for (; i < end; i += lanes<S>) {
            const std::int64_t row = first + i;
            const Quality<V> quality = ELEMENTS::form == QflForm::joint ? rows.across(row) : Quality<V>{};
            const auto labelled =
                read<IndexOf<S>>(rows.label + row) == IndexOf<S>{} + typename TaskRows<S>::Label(label);
            const Contribution<V> of_vector = one_vector<ELEMENTS, KIND, PASS>(
                load(from + i), quality, y + i, load(rows.template upstream_of_negatives<ELEMENTS>() + row), elements);
            if (PASS != Pass::forward) store(to + i, of_vector.gradient);
            each_sum<ELEMENTS, PASS>([&](auto which) {
                S* const sum = rows.sum[which] + row;
                store(sum, V(load(sum) + (labelled ? V{} : of_vector.to_sum[which])));
            });
        }
    }
}

// Which vector of classes: the point it belongs to, and its number among the point's vectors.
struct ClassVector {
    std::int64_t point, vector;

    void advance(std::int64_t vectors) {
        if (++vector == vectors) vector = 0, ++point;
    }
};

// As many points at a time as their classes lie across the lanes, and what each point's lanes add up.
constexpr std::int64_t points_across = 16;
template <class V> using LaneSums = V[sums][points_across];

// Groups of small negatives from vector `at` on, as over_classes has them; returns how many vectors of the `left` ones
// it did.
template <class ELEMENTS, Pass PASS>
__attribute__((noinline)) std::int64_t small_classes(const float* odds, float* to, std::int64_t to_pitch,
                                                     ClassVector& at, std::int64_t first, std::int64_t vectors,
                                                     std::int64_t left, const TaskRows<float>& rows,
                                                     LaneSums<Floats>& lane_sums) {
    constexpr int n = lanes<float>;
    const bool labelled = rows.labelled;
    Ints index{};
    for (int i = 0; i < n; ++i) index[i] = i;
    std::int64_t did = 0;
    for (; did + group <= left; did += group) {
        ClassVector each_at[group], next = at;
        for (int k = 0; k < group; ++k, next.advance(vectors)) each_at[k] = next;
        const bool done = small_group<ELEMENTS, PASS>(load_several<group>(odds + (at.point * vectors + at.vector) * n),
                                                      rows, [&](const float* values) {
            return each_part<group>([&](int k) { return splat(values[first + each_at[k].point]); });
        }, [&](Contribution<Group>& of_vector) {
            each<group>(group, [&](int k) {
                if constexpr (PASS != Pass::forward)
                    store(to + each_at[k].point * to_pitch + each_at[k].vector * n, of_vector.gradient.part[k]);
                each_sum<ELEMENTS, PASS>([&](auto which) {
                    Floats& added = of_vector.to_sum[which].part[k];
                    if (labelled) {
                        const std::int32_t label =
                            rows.label[first + each_at[k].point] - std::int32_t(each_at[k].vector * n);
                        added = index == Ints{} + label ? Floats{} : added;
                    }
                    lane_sums[which][each_at[k].point] += added;
                });
            });
        });
        if (!done) break;
        at = next;
    }
    return did;
}

// The classes of points [first, first + count), `vectors` vectors each (no more than class_room elements together), a
// point every `pitch` elements of `from` and `y`, and every `to_pitch` of `to`.
constexpr std::int64_t class_room = 4096;

template <class ELEMENTS, Kind KIND, Pass PASS, class S>
void over_classes(const S* from, const S* y, std::int64_t pitch, S* to, std::int64_t to_pitch, std::int64_t first,
                  std::int64_t count, std::int64_t vectors, const TaskRows<S>& rows, LaneSums<vector_t<S>>& lane_sums,
                  const ELEMENTS& elements) {
    using V = vector_t<S>;
    constexpr int n = lanes<S>;
    IndexOf<S> index{};
    for (int i = 0; i < n; ++i) index[i] = i;
    const bool small = may_be_small<KIND>(elements);
    alignas(64) S odds[class_room];
    if constexpr (std::is_same_v<S, float>) {
        if (small && pitch == vectors * n) odds_of(from, count * pitch, odds);
        else if (small)
            for (std::int64_t p = 0; p < count; ++p) odds_of(from + p * pitch, vectors * n, odds + p * vectors * n);
    }
    ClassVector at{0, 0};
    for (std::int64_t left = count * vectors; left > 0;) {
        std::int64_t some = left;
        if constexpr (std::is_same_v<S, float>) {
            if (small) {
                left -= small_classes<ELEMENTS, PASS>(odds, to, to_pitch, at, first, vectors, left, rows, lane_sums);
                some = std::min<std::int64_t>(left, group);
            }
        }
        for (left -= some; some > 0; --some, at.advance(vectors)) {
            const std::int64_t row = first + at.point, element = at.point * pitch + at.vector * n;
            const auto labelled = index == IndexOf<S>{} + typename TaskRows<S>::Label(rows.label[row] - at.vector * n);
            const Contribution<V> of_vector = one_vector<ELEMENTS, KIND, PASS>(
                load(from + element), rows.everywhere(row), y + element,
                broadcast<V>(rows.template upstream_of_negatives<ELEMENTS>()[row]), elements);
            if (PASS != Pass::forward) store(to + at.point * to_pitch + at.vector * n, of_vector.gradient);
            each_sum<ELEMENTS, PASS>(
                [&](auto which) { lane_sums[which][at.point] += labelled ? V{} : of_vector.to_sum[which]; });
        }
    }
}

// Calls one of the two above for the kind that is known only now.
template <class ELEMENTS, class Call> void with_kind(Kind kind, const Call& call) {
    if (kind == Kind::usual) return call(std::integral_constant<Kind, Kind::usual>{});
    if constexpr (ELEMENTS::dense)
        if (kind == Kind::dense) return call(std::integral_constant<Kind, Kind::dense>{});
    if constexpr (ELEMENTS::form == QflForm::joint) call(std::integral_constant<Kind, Kind::large>{});
}

// Few classes leave most lanes empty, and with adjacent points (one class too) the other way reads whole vectors.
inline bool classes_across_lanes(std::int64_t class_step, std::int64_t point_step, int classes, int lanes) {
    return class_step == 1 && point_step != 1 && 2 * classes >= lanes;
}

// A run of points at equal steps in memory, in an image of a level.
template <class T> struct PointRun {
    std::int64_t first, count;  // within the task
    const T* at;
    std::int64_t step, class_step;
    T* grad;  // or null
    std::int64_t grad_step, grad_class_step;
};

// A sum over thousands of classes is a sum of partial sums, so that rounding errors do not add up. These many classes
// form a partial sum, or where the classes lie across the lanes, these many vectors of them.
constexpr std::int64_t classes_per_sum = 64, vectors_per_sum = 64;

template <class ELEMENTS, Pass PASS, class T, class S>
void run_over_points(const typename ELEMENTS::Arguments& a, const PointRun<T>& r, const S* dense, Kind kind,
                     TaskRows<S>& rows, const ELEMENTS& elements) {
    alignas(64) S values[run_length], targets[run_length], gradients[run_length];
    const bool direct = in_place<T, S>(r.step, r.count), direct_grad = r.grad && in_place<T, S>(r.grad_step, r.count);
    S total[sums][run_length] = {};
    const auto take_sums = [&] {
        each_sum<ELEMENTS, PASS>([&](auto which) {
            S* const sum = rows.sum[which] + r.first;
            for (std::int64_t i = 0; i < r.count; ++i) {
                total[which][i] += sum[i];
                sum[i] = 0;
            }
        });
    };
    for (std::int64_t c = 0; c < a.classes; ++c) {
        if (c > 0 && c % classes_per_sum == 0) take_sums();
        const T* at = r.at + c * r.class_step;
        T* grad = r.grad ? r.grad + c * r.grad_class_step : nullptr;
        if (!direct) copy_in(at, r.step, r.count, values, padding<ELEMENTS, S>);
        if constexpr (ELEMENTS::dense)
            if (dense) copy_in(dense + c * a.score_class, a.score_row, r.count, targets, S(0));
        const S* from = direct ? reinterpret_cast<const S*>(at) : values;
        S* to = direct_grad ? reinterpret_cast<S*>(grad) : gradients;
        const NextClass next_class{reinterpret_cast<const char*>(at + r.class_step), std::int64_t(r.step * sizeof(T)),
                                   reinterpret_cast<const char*>(grad ? grad + r.grad_class_step : nullptr),
                                   std::int64_t(r.grad_step * sizeof(T))};
        with_kind<ELEMENTS>(kind, [&](auto k) {
            over_points<ELEMENTS, decltype(k)::value, PASS>(from, targets, to, next_class, r.first, r.count, c, rows,
                                                            elements);
        });
        if (grad && !direct_grad) copy_out(gradients, grad, r.grad_step, r.count);
    }
    take_sums();
    each_sum<ELEMENTS, PASS>(
        [&](auto which) { std::copy(total[which], total[which] + r.count, rows.sum[which] + r.first); });
}

template <class ELEMENTS, Pass PASS, class T, class S>
void run_over_classes(const typename ELEMENTS::Arguments& a, const PointRun<T>& r, const S* dense, Kind kind,
                      TaskRows<S>& rows, const ELEMENTS& elements) {
    // As many points at a time as fit, and as many classes of a point: a multiple of the lanes.
    constexpr std::int64_t room = class_room;
    constexpr int n = lanes<S>;
    alignas(64) S values[room], targets[room], gradients[room];
    const std::int64_t padded = (a.classes + n - 1) / n * n,
                       width = std::min(padded, std::min(room, n * vectors_per_sum));
    const std::int64_t some_points = std::min(points_across, room / width);
    for (std::int64_t p = 0; p < r.count; p += some_points) {
        const std::int64_t count = std::min(some_points, r.count - p);
        for (std::int64_t c = 0; c < a.classes; c += width) {
            const std::int64_t classes = std::min(width, a.classes - c), vectors = (classes + n - 1) / n;
            LaneSums<vector_t<S>> lane_sums = {};
            const bool direct = in_place<T, S>(r.class_step, classes) && width == padded && !dense;
            const bool direct_grad = r.grad && in_place<T, S>(r.grad_class_step, classes);
            const T* at = r.at + p * r.step + c * r.class_step;
            T* grad = r.grad ? r.grad + p * r.grad_step + c * r.grad_class_step : nullptr;
            for (std::int64_t i = 0; i < count; ++i) {
                if (!direct) copy_in(at + i * r.step, r.class_step, classes, values + i * width, padding<ELEMENTS, S>);
                if constexpr (ELEMENTS::dense)
                    if (dense)
                        copy_in(dense + (p + i) * a.score_row + c * a.score_class, a.score_class, classes,
                                targets + i * width, S(0));
            }
            const S* from = direct ? reinterpret_cast<const S*>(at) : values;
            S* to = direct_grad ? reinterpret_cast<S*>(grad) : gradients;
            // A label among the classes of an earlier or later part matches no lane of this one.
            for (std::int64_t i = 0; i < count; ++i) rows.label[r.first + p + i] -= typename TaskRows<S>::Label(c);
            with_kind<ELEMENTS>(kind, [&](auto k) {
                over_classes<ELEMENTS, decltype(k)::value, PASS>(from, targets, direct ? r.step : width, to,
                                                                 direct_grad ? r.grad_step : width, r.first + p, count,
                                                                 vectors, rows, lane_sums, elements);
            });
            for (std::int64_t i = 0; i < count; ++i) rows.label[r.first + p + i] += typename TaskRows<S>::Label(c);
            if (grad && !direct_grad)
                for (std::int64_t i = 0; i < count; ++i)
                    copy_out(gradients + i * width, grad + i * r.grad_step, r.grad_class_step, classes);
            each_sum<ELEMENTS, PASS>([&](auto which) {
                vector_t<S>* const of_points = lane_sums[which];
                for (std::int64_t i = 0; i < count; i += n) {
                    sum_each<S>(of_points + i);
                    for (int lane = 0; lane < std::min<std::int64_t>(n, count - i); ++lane)
                        rows.sum[which][r.first + p + i + lane] += of_points[i][lane];
                }
            });
        }
    }
}

template <class ELEMENTS, Pass PASS, class T> double run_task(const typename ELEMENTS::Arguments& a, const Task& task) {
    using S = typename ELEMENTS::S;
    constexpr bool backward = PASS != Pass::forward;
    const Level& level = a.levels.level[task.level];
    const std::int64_t row = task.image * a.points + level.first_point + task.first, points = task.last - task.first;
    const ELEMENTS elements(a);
    const S* scores = static_cast<const S*>(a.scores);

    // 1. What the points' classes share.
    TaskRows<S> rows(a, elements, row, points, backward);
    const Kind kind = ELEMENTS::dense && !a.labels                     ? Kind::dense
                      : rows.large && ELEMENTS::form == QflForm::joint ? Kind::large
                                                                       : Kind::usual;

    each_run(level, task, backward && a.grad_logits,
             [&](std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t step,
                 std::int64_t grad_offset, std::int64_t grad_step) {
        T* grad = backward && a.grad_logits ? static_cast<T*>(level.grad_logits) + grad_offset : nullptr;
        const PointRun<T> r{first - task.first,
                            count,
                            static_cast<const T*>(level.logits) + offset,
                            step,
                            level.strides.bin,
                            grad,
                            grad_step,
                            level.grad_strides.bin};

        // 2. All elements.
        const S* dense = nullptr;
        if constexpr (ELEMENTS::dense) dense = a.labels ? nullptr : scores + (row + r.first) * a.score_row;
        if (classes_across_lanes(r.class_step, step, a.classes, lanes<S>)) {
            run_over_classes<ELEMENTS, PASS>(a, r, dense, kind, rows, elements);
        } else {
            run_over_points<ELEMENTS, PASS>(a, r, dense, kind, rows, elements);
        }

        // 3. Those of the labels, whose lanes left the sums alone.
        if constexpr (ELEMENTS::own_labels && PASS != Pass::backward)
            for (std::int64_t p = 0; p < count; ++p) rows.sum[loss][r.first + p] *= elements.negative;
        if (rows.labelled)
            for (std::int64_t p = 0; p < count; ++p) {
                const std::int64_t i = r.first + p, label = rows.label[i];
                if (label < 0) continue;
                const JointScore<S> j =
                    joint_score<ELEMENTS::form, true, S>(widen(r.at[p * step + label * r.class_step]), rows.one(i));
                const S y = scores ? scores[row + i] : S(1);
                if constexpr (backward) {
                    const QflGradients<S> gradients = elements.gradients(j, y);
                    rows.sum[quality_gradient][i] += gradients.quality;
                    if (grad)
                        grad[p * grad_step + label * r.grad_class_step] = narrow<T>(gradients.value * rows.upstream[i]);
                }
                if constexpr (PASS != Pass::backward) rows.sum[loss][i] += elements.value(j, y);
            }
    });

    // 4. Results of the points.
    if constexpr (backward && ELEMENTS::form == QflForm::joint)
        if (a.grad_quality)
            for (std::int64_t i = 0; i < points; ++i)
                static_cast<S*>(a.grad_quality)[row + i] = rows.sum[quality_gradient][i] * rows.upstream[i];
    return PASS == Pass::backward ? 0 : reduce_rows(a.reduction, row, points, rows.sum[loss]);
}

// task(a, task): run_task of the elements that the arguments ask for.
template <Pass PASS, class Arguments, class RunTask> void run(const Arguments& a, int threads, const RunTask& task) {
    const std::vector<Task> tasks = list_tasks(a.levels, a.batch);
    std::vector<double> totals(tasks.size());
    if (PASS != Pass::forward && a.grad_logits) expect_gradients(a.levels, a.dtype, a.batch, 1, a.classes);
    parallel_for(std::int64_t(tasks.size()), threads, [&](std::int64_t i) { totals[i] = task(a, tasks[i]); });
    write_total(a.reduction, a.dtype, totals);
}

}  // namespace class_maps
GFLV2_END
