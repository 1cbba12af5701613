// `task_aligned` on a CPU. The arithmetic is gflv2/task_aligned.hpp's, with one point (or one box) in each lane.
//
//   1. Points lie in spans of 64. Of each span, the box around its points: a box that misses it has no point in it.
//      (Where any point may be a candidate, the box around the points' predicted boxes: those that miss overlap by 0.
//      With beta 0 they count all the same: then every point is looked at.)
//   2. Boxes find their candidates, some boxes a task, while other tasks fill the outputs with "background". Points
//      that are inside are gathered before anything of theirs is read. Their scores are asked for as they are found,
//      and used when the box has found all: each is a cache miss of its own.
//   3. What the boxes chose is written, box after box; of several the highest overlap wins, then the lower box.
//   4. Where all boxes around a contested point compete, one point after the other meets the boxes, one in each lane.
//   5. The targets, box by box.
// Memory grows with the points and with the boxes, never with both: a claim is 16 bytes, and a box has topk of them.

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"
#include "cpu/parallel.hpp"
#include "cpu/powers.hpp"
#include "gflv2/task_aligned.hpp"

GFLV2_BEGIN

namespace {

constexpr int width = lanes<float>;
constexpr std::int64_t span = 64;               // points
constexpr std::int64_t boxes_per_task = 16;     // some 20 µs
constexpr std::int64_t points_per_fill = 8192;  // 200 KB of outputs
constexpr std::int64_t points_per_contest = 64;
static_assert(span % width == 0 && 16 % width == 0);

// Box `box` of its image claims point `point`.
struct Claim {
    std::int32_t point, box;
    float overlap, metric;
};

template <int STEP> struct Rotate {
    static constexpr int at(int i) { return (i + STEP) % width; }
};

// Corners, each side on its own, so that a vector takes one side of several; NaN behind the last.
class Corners {
public:
    explicit Corners(std::int64_t count) : room_((count + width - 1) / width * width + width) {
        memory_.assign(4 * room_, __builtin_nanf(""));
    }
    void set(std::int64_t i, const TaskBox<float>& box) {
        float* const at = memory_.data() + i;
        at[0] = box.x1, at[room_] = box.y1, at[2 * room_] = box.x2, at[3 * room_] = box.y2;
    }
    TaskBox<Floats> vector(std::int64_t i) const {
        const float* const at = memory_.data() + i;
        return {load(at), load(at + room_), load(at + 2 * room_), load(at + 3 * room_)};
    }
    TaskBox<float> one(std::int64_t i) const {
        const float* const at = memory_.data() + i;
        return {at[0], at[room_], at[2 * room_], at[3 * room_]};
    }

private:
    std::int64_t room_;
    std::vector<float> memory_;
};

// Of all lanes; none is a NaN.
template <int STEP = width / 2> float highest(Floats value) {
    if constexpr (STEP == 0) return value[0];
    else return highest<STEP / 2>(maximum(value, permute<float, Rotate<STEP>>(value, value)));
}

template <int... I> Ints counting(std::integer_sequence<int, I...>) { return Ints{I...}; }

template <class V> TaskBox<Floats> spread(const TaskBox<V>& box) {
    return {splat(box.x1), splat(box.y1), splat(box.x2), splat(box.y2)};
}

// The best points of one box, best first.
class BestPoints {
public:
    explicit BestPoints(int room) : places_(room) {}
    void clear() { count_ = 0; }
    int size() const { return count_; }
    int room() const { return int(places_.size()); }
    const Claim& operator[](int n) const { return places_[n]; }
    // What a metric must exceed.
    float bar() const { return count_ < int(places_.size()) ? 0.0f : places_[count_ - 1].metric; }
    // Points must come in their order: of equal metrics the one that came first stays in front.
    void insert(const Claim& claim) {
        if (!(claim.metric > bar())) return;
        int n = count_ < int(places_.size()) ? count_++ : count_ - 1;
        for (; n > 0 && claim.metric > places_[n - 1].metric; --n) places_[n] = places_[n - 1];
        places_[n] = claim;
    }

private:
    std::vector<Claim> places_;
    int count_ = 0;
};

// The points that may be candidates of a box, in their order, and what they are to it. The last group of a vector's width
// is filled up, with points again, and with metrics of 0.
struct Near {
    explicit Near(std::int64_t points) : points(points + width), overlaps(points), metrics(points) {}

    std::vector<std::int32_t> points;
    std::vector<float> overlaps, metrics;
    std::int64_t count = 0;
};

// Boxes [first, last) of one image and what they claim; or, where last is 0, points to fill from first on.
struct Task {
    std::int64_t image, first, last;
    std::vector<Claim> claims;
};

class Assignment {
public:
    Assignment(const TaskAlignedArguments& a, int threads)
        : a_(a), alpha_(exponent_of(a.alpha)), beta_(exponent_of(a.beta)), apart_(beta_.whole == 0),
          score_bytes_(a.dtype == Dtype::float64   ? 8
                       : a.dtype == Dtype::float32 ? 4
                                                   : 2),
          counted_(counting(std::make_integer_sequence<int, width>{})), threads_(threads),
          positions_x_(padded_points()), positions_y_(padded_points()),
          spans_(a.inside ? 1 : a.batch, Corners(span_count())), boxes_(a.total_boxes), limits_(a.total_boxes),
          angles_(a.total_boxes + width), positives_(a.batch), exists_(a.batch) {}

    void run() {
        prepare();
        const std::int64_t searches = find();
        parallel_for(a_.batch, threads_, [&](std::int64_t image) {
            for (std::int64_t t = 0; t < searches; ++t)
                if (tasks_[t].image == image) settle(image, tasks_[t].claims);
        });
        if (a_.containing) contest();
        parallel_for(a_.batch, threads_, [&](std::int64_t image) {
            if (a_.final_topk > 0) keep_best(image);
            finish(image);
        });
    }

private:
    std::int64_t span_count() const { return (a_.points + span - 1) / span; }
    std::int64_t padded_points() const { return span_count() * span; }

    // --- 1. ---

    void prepare() {
        std::fill(positions_x_.begin() + a_.points, positions_x_.end(), __builtin_nanf(""));
        std::fill(positions_y_.begin() + a_.points, positions_y_.end(), __builtin_nanf(""));
        std::int64_t p = 0;
        for (; p + width <= a_.points; p += width) {
            const Floats low = load(a_.positions + 2 * p), high = load(a_.positions + 2 * p + width);
            store(positions_x_.data() + p, permute<float, Unzip<0>>(low, high));
            store(positions_y_.data() + p, permute<float, Unzip<1>>(low, high));
        }
        for (; p < a_.points; ++p) {
            positions_x_[p] = a_.positions[2 * p];
            positions_y_[p] = a_.positions[2 * p + 1];
        }
        if (a_.inside) {
            frame_spans(spans_[0], [&](std::int64_t p) {
                const Floats x = load(positions_x_.data() + p), y = load(positions_y_.data() + p);
                return TaskBox<Floats>{x, y, x, y};
            });
        } else if (!apart_) {
            parallel_for(a_.batch, threads_, [&](std::int64_t image) {
                frame_spans(spans_[image], [&](std::int64_t p) { return preds(image, p); });
            });
        }
        for (std::int64_t image = 0; image < a_.batch; ++image) {
            const TaskAlignedImage& of = a_.images[image];
            exists_[image] = boxes_of(of);
            for (std::int64_t g = 0; g < exists_[image]; ++g) {
                if (of.labels[g] < 0 || of.labels[g] >= a_.classes) continue;  // stays NaN
                const TaskBox<float> box = task_box(of.boxes + 4 * g);
                boxes_.set(of.first + g, box);
                limits_.set(of.first + g, task_limits(box, a_.min_side));
                angles_[of.first + g] = a_.ciou ? box_angle(box) : 0.0f;
            }
        }
    }

    // A NaN is in no frame, and would be no candidate.
    template <class BoxesFrom> void frame_spans(Corners& frames, const BoxesFrom& boxes_from) const {
        for (std::int64_t s = 0; s < span_count(); ++s) {
            const Floats far = splat(beyond_float);
            TaskBox<Floats> frame{far, far, -far, -far};
            for (std::int64_t p = s * span; p < (s + 1) * span; p += width) {
                const TaskBox<Floats> boxes = boxes_from(p);
                frame.x1 = minimum(boxes.x1, frame.x1), frame.y1 = minimum(boxes.y1, frame.y1);
                frame.x2 = maximum(boxes.x2, frame.x2), frame.y2 = maximum(boxes.y2, frame.y2);
            }
            frames.set(s, {-highest(-frame.x1), -highest(-frame.y1), highest(frame.x2), highest(frame.y2)});
        }
    }

    // --- 2. ---

    const float* pred(std::int64_t image, std::int64_t p) const { return a_.boxes + 4 * (image * a_.points + p); }

    // The predicted boxes from p on; NaN behind the last.
    TaskBox<Floats> preds(std::int64_t image, std::int64_t p) const {
        const Floats none = splat(__builtin_nanf(""));
        Floats sides[4] = {none, none, none, none};
        if (p + width <= a_.points) {
            load_interleaved<float>(pred(image, p), sides);
        } else {
            for (int i = 0; p + i < a_.points; ++i)
                for (int side = 0; side < 4; ++side) sides[side][i] = pred(image, p + i)[side];
        }
        return {sides[0], sides[1], sides[2], sides[3]};
    }

    // Where the scores of an image for a class begin.
    std::int64_t class_offset(std::int64_t image, std::int64_t label) const {
        return image * a_.image_stride + label * a_.class_stride;
    }

    float score(std::int64_t image, std::int64_t p, std::int64_t label) const {
        return score_at(a_, class_offset(image, label) + p * a_.point_stride);
    }

    template <class T> Floats scores_as(std::int64_t offset, const std::int32_t* points) const {
        const T* const from = static_cast<const T*>(a_.scores) + offset;
        return gathered([&](int i) { return float(widen(from[points[i] * a_.point_stride])); });
    }

    // Of the points of one group.
    Floats scores(std::int64_t offset, const std::int32_t* points) const {
        switch (a_.dtype) {
            case Dtype::float16: return scores_as<half>(offset, points);
            case Dtype::bfloat16: return scores_as<bfloat16>(offset, points);
            case Dtype::float64: return scores_as<double>(offset, points);
            default: return scores_as<float>(offset, points);
        }
    }

    void ask_for_scores(std::int64_t offset, const std::int32_t* points) const {
        const char* const from = static_cast<const char*>(a_.scores) + offset * score_bytes_;
        for (int i = 0; i < width; ++i) __builtin_prefetch(from + points[i] * a_.point_stride * score_bytes_);
    }

    // The number of tasks that search; all are done.
    std::int64_t find() {
        std::int64_t all = 0;
        for (std::int64_t image = 0; image < a_.batch; ++image)
            for (std::int64_t first = 0, count = exists_[image]; first < count; first += boxes_per_task) {
                tasks_.push_back({image, first, std::min(first + boxes_per_task, count), {}});
                all += std::min(boxes_per_task, count - first);
            }
        const std::int64_t searches = tasks_.size();
        // Some 1 µs a box, and 0.5 ns a point.
        threads_ = threads_for(all * 1000 + a_.batch * a_.points / 2, threads_);
        for (std::int64_t image = 0; image < a_.batch; ++image)
            for (std::int64_t first = 0; first < a_.points; first += points_per_fill)
                tasks_.push_back({image, first, 0, {}});
        parallel_for(tasks_.size(), threads_, [&](std::int64_t t) {
            if (t >= searches) fill(tasks_[t]);
            else search(tasks_[t]);
        });
        return searches;
    }

    void fill(const Task& task) const {
        const std::int64_t count = std::min(points_per_fill, a_.points - task.first),
                           from = task.image * a_.points + task.first;
        std::memset(a_.index + from, 0, count * sizeof *a_.index);
        std::memset(a_.labels + from, 0xff, count * sizeof *a_.labels);
        std::memset(a_.iou + from, 0, count * sizeof *a_.iou);
        std::memset(a_.targets + from, 0, count * sizeof *a_.targets);
    }

    void search(Task& task) const {
        const TaskAlignedImage& image = a_.images[task.image];
        const int room = int(std::min<std::int64_t>(a_.topk, a_.points));
        BestPoints best(room);
        Near near(padded_points());
        for (std::int64_t g = task.first; g < task.last; ++g) {
            const std::int64_t at = image.first + g;
            const TaskBox<float> limits = limits_.one(at);
            if (!(limits.x1 <= limits.x2 && limits.y1 <= limits.y2)) continue;  // a NaN, or nothing inside
            const std::int64_t offset = class_offset(task.image, image.labels[g]);
            gather(task.image, at, offset, near);
            weigh(task.image, at, offset, near);
            choose(near, best);
            for (int n = 0; n < best.size(); ++n) {
                Claim claim = best[n];
                if (!a_.inside && !is_inside(positions_x_[claim.point], positions_y_[claim.point], limits, a_.margin))
                    continue;
                claim.box = std::int32_t(g);
                task.claims.push_back(claim);
            }
            if (a_.zeros && best.size() < room)
                claim_zeros(task.image, at, std::int32_t(g), image.labels[g], room, best, task.claims);
        }
    }

    // The points that may be candidates of box `at`. Their scores, which begin at `offset`, are asked for.
    void gather(std::int64_t image, std::int64_t at, std::int64_t offset, Near& near) const {
        std::int32_t* const points = near.points.data();
        std::int64_t count = 0, asked = 0;
        const auto ask = [&](std::int64_t limit) {
            for (; asked < limit; asked += width) ask_for_scores(offset, points + asked);
        };
        if (apart_ && !a_.inside) {
            std::iota(points, points + a_.points, 0);
            count = a_.points;
        } else {
            const TaskBox<Floats> limits = spread(limits_.one(at)), box = spread(boxes_.one(at));
            const TaskBox<Floats>& reach = a_.inside ? limits : box;
            const Corners& frames = spans_[a_.inside ? 0 : image];
            for (std::int64_t first = 0; first < span_count(); first += width) {
                const TaskBox<Floats> frame = frames.vector(first);
                std::uint32_t met = lane_bits((frame.x1 <= reach.x2) & (frame.x2 >= reach.x1) & (frame.y1 <= reach.y2) &
                                              (frame.y2 >= reach.y1));
                for (; met; met &= met - 1) {
                    const std::int64_t from = (first + __builtin_ctz(met)) * span;
                    for (std::int64_t p = from; p < from + span; p += width) {
                        const std::uint32_t bits =
                            a_.inside ? lane_bits(is_inside(load(positions_x_.data() + p),
                                                            load(positions_y_.data() + p), limits, a_.margin))
                                      : touching(image, p, box);
                        count += store_chosen(points + count, counted_ + std::int32_t(p), bits);
                    }
                    ask(count - width + 1);
                }
            }
        }
        if (count > 0) {
            std::fill(points + count, points + (count + width - 1) / width * width, points[0]);
            ask(count);
        }
        near.count = count;
    }

    // Which of the predicted boxes from p on share an area with the box. One with a NaN may be among them.
    std::uint32_t touching(std::int64_t image, std::int64_t p, const TaskBox<Floats>& box) const {
        if (p >= a_.points) return 0;
        const TaskBox<Floats> boxes = preds(image, p);
        const std::uint32_t bits = lane_bits((minimum(boxes.x2, box.x2) > maximum(boxes.x1, box.x1)) &
                                             (minimum(boxes.y2, box.y2) > maximum(boxes.y1, box.y1)));
        return a_.points - p < width ? bits & ((1u << (a_.points - p)) - 1) : bits;
    }

    // Overlaps and metrics of box `at` with its points. Without a branch on either, so that the processor is at work on
    // several groups at once: within one, each step waits for the one before.
    void weigh(std::int64_t image, std::int64_t at, std::int64_t offset, Near& near) const {
        constexpr int quads = width / 4;
        const TaskBox<Floats> box = spread(boxes_.one(at));
        const Floats angle = splat(angles_[at]);
        for (std::int64_t n = 0; n < near.count; n += width) {
            const std::int32_t* const points = near.points.data() + n;
            const auto part = [&](int m) {
                return load_quads([&](int i) { return pred(image, points[m * quads + i]); });
            };
            Floats sides[4];
            deinterleave<float>(part(0), part(1), part(2), part(3), sides);
            const TaskOverlap<Floats> shared =
                task_overlap(a_.ciou, {sides[0], sides[1], sides[2], sides[3]}, box, angle);
            store(near.overlaps.data() + n, shared.value);
            store(near.metrics.data() + n, task_metric(alpha_, beta_, scores(offset, points), shared).value);
        }
        std::fill(near.metrics.begin() + near.count, near.metrics.begin() + (near.count + width - 1) / width * width,
                  0);
    }

    static void choose(const Near& near, BestPoints& best) {
        best.clear();
        const float least = least_chosen(near, best.room());
        for (std::int64_t n = 0; n < near.count; n += width) {
            const Floats metrics = load(near.metrics.data() + n);
            std::uint32_t bits = lane_bits((metrics > splat(best.bar())) & (metrics >= splat(least)));
            for (; bits; bits &= bits - 1) {
                const std::int64_t i = n + __builtin_ctz(bits);
                best.insert({near.points[i], 0, near.overlaps[i], near.metrics[i]});
            }
        }
    }

    // A metric that at least `room` points reach: of the highest ones of 16 parts of the points, the one of that rank.
    // Towards the middle of a box metrics rise, and without it most points would be in the list for a while.
    static float least_chosen(const Near& near, int room) {
        constexpr int parts = 16, vectors = parts / width;
        if (room > parts || near.count <= parts) return 0;
        Floats highest[vectors] = {};
        for (std::int64_t n = 0, part = 0; n < near.count; n += width, part = (part + 1) % vectors)
            highest[part] = maximum(highest[part], load(near.metrics.data() + n));
        float each[parts], least = beyond_float;
        for (int part = 0; part < vectors; ++part) store(each + part * width, highest[part]);
        for (const float value : each) {
            int above = 0;
            for (const Floats& values : highest) above += __builtin_popcount(lane_bits(values > splat(value)));
            least = above < room && value < least ? value : least;
        }
        return least;
    }

    struct Pair {
        float overlap, metric;
        bool counts;
    };

    Pair pair(std::int64_t image, std::int64_t p, std::int64_t at, std::int64_t label) const {
        const TaskOverlap<float> shared = task_overlap(a_.ciou, task_box(pred(image, p)), boxes_.one(at), angles_[at]);
        const TaskMetric<float> metric = task_metric(alpha_, beta_, score(image, p, label), shared);
        return {shared.value, metric.value, metric.counts};
    }

    // The places that are left in the list go to the points of metric 0 in their order, outside ones included.
    void claim_zeros(std::int64_t image, std::int64_t at, std::int32_t box, std::int64_t label, int room,
                     const BestPoints& best, std::vector<Claim>& claims) const {
        const TaskBox<float> limits = limits_.one(at);
        int left = room - best.size();
        for (std::int32_t p = 0; left > 0; ++p) {
            bool taken = false;
            for (int n = 0; n < best.size(); ++n) taken |= best[n].point == p;
            if (taken) continue;
            --left;
            if (!is_inside(positions_x_[p], positions_y_[p], limits, a_.margin)) continue;
            const Pair of = pair(image, p, at, label);
            if (of.counts) claims.push_back({p, box, of.overlap, of.metric});
        }
    }

    // --- 3. ---

    // Until the end `targets` has the metrics, and `labels` the number of claims.
    void settle(std::int64_t image, const std::vector<Claim>& claims) {
        const std::int64_t base = image * a_.points;
        for (const Claim& claim : claims) {
            const std::int64_t at = base + claim.point;
            if (a_.index[at] == 0) {
                positives_[image].push_back(claim.point);
                a_.labels[at] = 0;
            }
            ++a_.labels[at];
            if (a_.index[at] != 0 && !(claim.overlap > a_.iou[at])) continue;
            a_.index[at] = claim.box + 1;
            a_.iou[at] = claim.overlap;
            a_.targets[at] = claim.metric;
        }
    }

    // --- 4. ---

    void contest() {
        struct Part {
            std::int64_t image, first, last;
        };
        std::vector<Part> parts;
        for (std::int64_t image = 0; image < a_.batch; ++image)
            for (std::int64_t first = 0, count = positives_[image].size(); first < count; first += points_per_contest)
                parts.push_back({image, first, std::min(first + points_per_contest, count)});
        parallel_for(parts.size(), threads_, [&](std::int64_t n) {
            for (std::int64_t i = parts[n].first; i < parts[n].last; ++i) {
                const std::int32_t p = positives_[parts[n].image][i];
                if (a_.labels[parts[n].image * a_.points + p] > 1) contest(parts[n].image, p);
            }
        });
    }

    // The point goes to the highest overlap of all boxes that it lies inside of.
    void contest(std::int64_t image, std::int32_t p) {
        const TaskAlignedImage& of = a_.images[image];
        const Floats x = splat(positions_x_[p]), y = splat(positions_y_[p]);
        const TaskBox<Floats> own = spread(task_box(pred(image, p)));
        float most = -1.0f;
        std::int64_t best = -1;
        for (std::int64_t g = 0; g < exists_[image]; g += width) {
            const std::int64_t at = of.first + g, left = exists_[image] - g;
            std::uint32_t bits = lane_bits(is_inside(x, y, limits_.vector(at), a_.margin));
            if (left < width) bits &= (1u << left) - 1;
            if (!bits) continue;
            const TaskOverlap<Floats> shared = task_overlap(a_.ciou, own, boxes_.vector(at), load(angles_.data() + at));
            for (bits &= lane_bits(shared.value > splat(most)); bits; bits &= bits - 1) {
                const int i = __builtin_ctz(bits);
                if (!(shared.value[i] > most)) continue;
                if (!pair(image, p, at + i, of.labels[g + i]).counts) continue;
                most = shared.value[i];
                best = g + i;
            }
        }
        if (best < 0) return;  // never: the boxes that chose the point are among them
        const std::int64_t at = image * a_.points + p;
        const Pair won = pair(image, p, of.first + best, of.labels[best]);
        a_.index[at] = best + 1;
        a_.iou[at] = won.overlap;
        a_.targets[at] = won.metric;
    }

    // --- 5. ---

    // Of the points of each box the `final_topk` of highest metric remain.
    void keep_best(std::int64_t image) {
        std::vector<std::int32_t>& points = positives_[image];
        const std::int64_t base = image * a_.points;
        std::sort(points.begin(), points.end(), [&](std::int32_t p, std::int32_t q) {
            const std::int64_t at = base + p, other = base + q;
            if (a_.index[at] != a_.index[other]) return a_.index[at] < a_.index[other];
            if (a_.targets[at] != a_.targets[other]) return a_.targets[at] > a_.targets[other];
            return p < q;
        });
        std::vector<std::int32_t> kept;
        for (std::size_t first = 0, last; first < points.size(); first = last) {
            last = first;
            while (last < points.size() && a_.index[base + points[last]] == a_.index[base + points[first]]) ++last;
            std::size_t n = first;
            for (; n < last && int(n - first) < a_.final_topk && a_.targets[base + points[n]] > 0; ++n)
                kept.push_back(points[n]);
            // As in step 2: what is left goes to the points of metric 0 in their order, those of others included.
            const std::size_t weighed = n;
            for (; n < last; ++n) {
                const std::int32_t p = points[n];
                std::int64_t rank = p;
                for (std::size_t m = first; m < weighed; ++m) rank -= points[m] < p;
                if (a_.targets[base + p] == 0 && rank < a_.final_topk - std::int64_t(weighed - first)) {
                    kept.push_back(p);
                } else {
                    a_.index[base + p] = 0, a_.labels[base + p] = -1;
                    a_.iou[base + p] = a_.targets[base + p] = 0;
                }
            }
        }
        points.swap(kept);
    }

    void finish(std::int64_t image) {
        const TaskAlignedImage& of = a_.images[image];
        const std::int64_t base = image * a_.points;
        std::vector<float> most(a_.normalize ? 2 * exists_[image] : 0);
        if (a_.normalize) {
            for (const std::int32_t p : positives_[image]) {
                float* const box = most.data() + 2 * (a_.index[base + p] - 1);
                box[0] = std::max(box[0], a_.targets[base + p]);
                box[1] = std::max(box[1], a_.iou[base + p]);
            }
        }
        for (const std::int32_t p : positives_[image]) {
            const std::int64_t box = a_.index[base + p] - 1;
            a_.labels[base + p] = of.labels[box];
            if (a_.normalize)
                a_.targets[base + p] = a_.targets[base + p] * most[2 * box + 1] / (most[2 * box] + a_.eps);
        }
    }

    const TaskAlignedArguments& a_;
    const Exponent alpha_, beta_;
    const bool apart_;  // beta is 0: a pair that does not overlap has a metric, too
    const std::int64_t score_bytes_;
    const Ints counted_;  // 0, 1, 2, …
    int threads_;
    std::vector<float> positions_x_, positions_y_;  // to the end of the last span
    std::vector<Corners> spans_;                    // the frames; where any point is a candidate, of each image
    Corners boxes_, limits_;                        // of all images
    std::vector<float> angles_;
    std::vector<std::vector<std::int32_t>> positives_;  // the points of each image that some box chose
    std::vector<std::int64_t> exists_;                  // boxes of each image
    std::vector<Task> tasks_;
};

}  // namespace

void task_aligned(const TaskAlignedArguments& a, int threads) { Assignment(a, threads).run(); }

GFLV2_END
