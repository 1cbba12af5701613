// `dynamic_soft_label` on a CPU. The arithmetic is gflv2/dynamic_soft_label.hpp's.
//
//   1. Points, a stretch of them a task: the outputs become "background"; those inside some box are collected with what
//      boxes want to know of them. The sum over their classes is formed here, once a point.
//   2. Boxes, some a task, the candidates of the image in the lanes: IoUs with all, of which groups of lanes that no
//      corner of the box reaches are left out; k; the k candidates of lowest cost.
//   3. Points taken by one box are written, the others noted.
//   4. For those, some a task, the boxes of the image in the lanes: the lowest cost of all.
//
// A cost without its first term is a lower bound that needs no class value, whose load is a cache miss. So a box first
// looks at its k candidates of lowest bound, and then only at those whose bound is not above the worst of these. Where
// the IoU is 0 the bound is no less than w·16: such pairs are hardly ever looked at.
//
// Memory grows with points and boxes, not with their product.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"
#include "cpu/parallel.hpp"
#include "gflv2/dynamic_soft_label.hpp"
#include "gflv2/instances.hpp"

GFLV2_BEGIN

namespace {

constexpr int width = lanes<float>;
constexpr int stretch = 512;  // points a task of step 1; a multiple of the width
constexpr int summed = 16;    // chains of the sum over classes, the same for every instruction set
constexpr float infinity = __builtin_huge_valf();
constexpr std::int32_t nobody = 0x7fffffff;

std::int64_t rounded_up(std::int64_t count, std::int64_t to) { return (count + to - 1) / to * to; }

// Columns of numbers in one piece of memory.
template <class T> class Columns {
public:
    Columns(int count, std::int64_t rows, T value) : rows_(rows), memory_(std::size_t(count) * rows, value) {}
    T* operator[](int column) { return memory_.data() + column * rows_; }
    const T* operator[](int column) const { return memory_.data() + column * rows_; }

private:
    std::int64_t rows_;
    std::vector<T> memory_;
};

enum Column { X1, Y1, X2, Y2, AREA, X, Y, STRIDE };  // the last three: of a candidate

PlainBox<Floats> load_box(const Columns<float>& from, std::int64_t row) {
    return {load(from[X1] + row), load(from[Y1] + row), load(from[X2] + row), load(from[Y2] + row)};
}
PlainBox<Floats> splat_box(const Columns<float>& from, std::int64_t row) {
    return {splat(from[X1][row]), splat(from[Y1][row]), splat(from[X2][row]), splat(from[Y2][row])};
}

// The boxes of an image that take part. Behind the last: boxes that meet nothing.
struct Truths {
    int count = 0;
    Columns<float> box;
    std::vector<std::int32_t> label, number;

    explicit Truths(const SoftLabelImage& image, int classes)
        : box(5, rounded_up(boxes_of(image) + 1, width), -infinity) {
        const std::int64_t all = boxes_of(image);
        label.assign(rounded_up(all + 1, width), 0);
        number.assign(label.size(), nobody);
        for (std::int64_t i = 0; i < all; ++i) {
            const float* const at = image.boxes + 4 * i;
            const PlainBox<float> one{at[0], at[1], at[2], at[3]};
            if (!one.finite() || image.labels[i] < 0 || image.labels[i] >= classes) continue;
            for (int side = 0; side < 4; ++side) box[side][count] = at[side];
            box[AREA][count] = one.area();
            label[count] = std::int32_t(image.labels[i]);
            number[count] = std::int32_t(i);
            ++count;
        }
        for (std::size_t i = count; i < label.size(); ++i) box[X1][i] = box[Y1][i] = infinity;
    }
};

// The candidates of an image: those of each stretch of points lie from its first slot on, in the order of the points.
// Behind them up to a full vector: slots that meet nothing, whose cost is NaN.
struct Candidates {
    Columns<float> at;
    std::vector<double> base;         // sum over the classes
    std::vector<std::int32_t> point;  // index in the image
    std::vector<int> found;           // of each stretch
    Columns<float> reach;             // of each vector of slots, the box round its boxes; 16 more of them than needed

    explicit Candidates(std::int64_t points)
        : at(8, rounded_up(points, stretch), 0.0f), base(rounded_up(points, stretch)),
          point(rounded_up(points, stretch)), found(rounded_up(points, stretch) / stretch),
          reach(4, rounded_up(points, stretch) / width + width, -infinity) {
        std::fill_n(reach[X1], 2 * (rounded_up(points, stretch) / width + width), infinity);
    }
    std::int64_t vectors() const { return std::int64_t(point.size()) / width; }
};

struct Claim {
    std::int32_t slot, truth;
    float cost;
};

struct Image {
    Truths truths;
    Candidates candidates;
    std::vector<std::int32_t> owner;  // of a slot: the box that took it, −1, or −2 − place in `contested`
    std::vector<Claim> contested;     // slots taken more than once, each with the lowest cost so far

    Image(const SoftLabelImage& image, int classes, std::int64_t points)
        : truths(image, classes), candidates(truths.count > 0 ? points : 0) {}
};

// The list of the lowest costs, best first; of equal costs the lower slot.
class Lowest {
public:
    explicit Lowest(int most) : costs_(most), slots_(most) {}
    void reset(int size) { size_ = size, found_ = 0; }
    float worst() const { return found_ < size_ ? infinity : costs_[size_ - 1]; }
    int found() const { return found_; }
    std::int32_t slot(int n) const { return slots_[n]; }
    float cost(int n) const { return costs_[n]; }
    void insert(float cost, std::int32_t slot) {  // no NaN
        if (found_ == size_) {
            if (!before(cost, slot, size_ - 1)) return;
        } else {
            ++found_;
        }
        int n = found_ - 1;
        for (; n > 0 && before(cost, slot, n - 1); --n) costs_[n] = costs_[n - 1], slots_[n] = slots_[n - 1];
        costs_[n] = cost;
        slots_[n] = slot;
    }

private:
    bool before(float cost, std::int32_t slot, int n) const {
        return cost < costs_[n] || (cost == costs_[n] && slot < slots_[n]);
    }
    int size_ = 0, found_ = 0;
    std::vector<float> costs_;
    std::vector<std::int32_t> slots_;
};

float value_at(const DynamicSoftLabelArguments& a, std::int64_t offset) {
    return with_type(a.dtype,
                     [&](auto zero) { return float(widen(static_cast<const decltype(zero)*>(a.values)[offset])); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Step 1

// The class values of a point, as floats.
void read_values(const DynamicSoftLabelArguments& a, std::int64_t offset, float* to) {
    with_type(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = static_cast<const T*>(a.values) + offset;
        int c = 0;
        if constexpr (sizeof(T) < sizeof(double)) {
            if (a.value_class == 1)
                for (; c + width <= a.classes; c += width) store(to + c, load(from + c));
        }
        for (; c < a.classes; ++c) to[c] = float(widen(from[c * a.value_class]));
    });
}

// Sum of the background terms, or NaN where some value is unusable. `values` is filled up to a multiple of `summed` with
// values whose term is 0.
template <SoftLabelCost COST> double base_of(const float* values, int count) {
    constexpr int parts = summed / width;
    WideDoubles sums[parts]{};
    Ints usable = Ints{} == Ints{};
    for (int c = 0; c < count; c += summed)
        each<parts>(parts, [&](int n) {
            const Floats x = load(values + c + n * width);
            usable &= usable_value<COST>(x);
            sums[n] = sums[n] + widened(ClassTerm<COST, Floats>(x).background());
        });
    if (any(~usable)) return __builtin_nan("");
    double chain[summed];
    std::memcpy(chain, sums, sizeof chain);
    for (int half = summed / 2; half > 0; half /= 2)
        for (int n = 0; n < half; ++n) chain[n] += chain[n + half];
    return chain[0];
}

template <SoftLabelCost COST>
void collect(const DynamicSoftLabelArguments& a, std::int64_t i, int part, Image& image, std::vector<float>& values) {
    const std::int64_t first = std::int64_t(part) * stretch, count = std::min<std::int64_t>(stretch, a.points - first),
                       from = i * a.points + first;
    std::memset(a.index + from, 0, count * sizeof *a.index);
    std::memset(a.iou + from, 0, count * sizeof *a.iou);
    std::memset(a.labels + from, 0xff, count * sizeof *a.labels);
    if (image.truths.count == 0) return;

    // 1. Which points some box makes a candidate. Only boxes that could reach the stretch are asked.
    alignas(64) float sides[3][stretch];
    float low_x = infinity, low_y = infinity, high_x = -infinity, high_y = -infinity, reach = 0;
    for (std::int64_t p = 0; p < rounded_up(count, width); ++p) {
        const bool there = p < count;
        const float x = there ? a.places[2 * (first + p)] : __builtin_nanf(""),
                    y = there ? a.places[2 * (first + p) + 1] : __builtin_nanf("");
        sides[0][p] = x, sides[1][p] = y, sides[2][p] = there ? a.strides[first + p] : 0.0f;
        low_x = std::min(low_x, x), high_x = std::max(high_x, x);
        low_y = std::min(low_y, y), high_y = std::max(high_y, y);
        reach = std::max(reach, sides[2][p]);
    }
    reach = outside_penalty(COST) > 0 ? reach * a.center_radius * 1.01f : 0.0f;
    std::vector<std::int32_t> near;
    const Columns<float>& boxes = image.truths.box;
    for (int t = 0; t < image.truths.count; ++t) {
        const float centre_x = (boxes[X1][t] + boxes[X2][t]) * 0.5f, centre_y = (boxes[Y1][t] + boxes[Y2][t]) * 0.5f;
        const bool apart_x =
            std::min(boxes[X1][t], centre_x - reach) >= high_x || std::max(boxes[X2][t], centre_x + reach) <= low_x;
        const bool apart_y =
            std::min(boxes[Y1][t], centre_y - reach) >= high_y || std::max(boxes[Y2][t], centre_y + reach) <= low_y;
        if (!(apart_x || apart_y)) near.push_back(t);
    }

    // 2. They are collected.
    Candidates& candidates = image.candidates;
    std::int64_t slot = first;
    for (std::int64_t p = 0; p < count; p += width) {
        const Floats x = load(sides[0] + p), y = load(sides[1] + p), stride = load(sides[2] + p);
        Ints taken{};
        std::uint32_t open = width == 32 ? ~0u : (1u << width) - 1;
        if (count - p < width) open &= (1u << (count - p)) - 1;
        for (std::size_t n = 0; n < near.size() && (lane_bits(taken) & open) != open; ++n)
            taken |= makes_candidate<COST>(x, y, stride, splat_box(boxes, near[n]), a.center_radius);
        for (std::uint32_t bits = lane_bits(taken) & open; bits; bits &= bits - 1) {
            const std::int64_t q = p + __builtin_ctz(bits);
            const float* const at = a.boxes + 4 * (from + q);
            const PlainBox<float> box{at[0], at[1], at[2], at[3]};
            if (!box.finite()) continue;
            read_values(a, i * a.value_image + (first + q) * a.value_point, values.data());
            const double base = base_of<COST>(values.data(), int(values.size()));
            if (base != base) continue;
            for (int side = 0; side < 4; ++side) candidates.at[side][slot] = at[side];
            candidates.at[AREA][slot] = box.area();
            for (int n = 0; n < 3; ++n) candidates.at[X + n][slot] = sides[n][q];
            candidates.base[slot] = base;
            candidates.point[slot] = std::int32_t(first + q);
            ++slot;
        }
    }
    candidates.found[part] = int(slot - first);

    // 3. The last vector is filled up, and the vectors get the boxes round them.
    for (; slot % width; ++slot) {
        for (const int side : {X1, Y1}) candidates.at[side][slot] = infinity;
        for (const int side : {X2, Y2}) candidates.at[side][slot] = -infinity;
        candidates.at[AREA][slot] = 0;
        candidates.base[slot] = __builtin_nan("");
    }
    for (std::int64_t s = first; s < slot; s += width)
        for (int lane = 0; lane < width; ++lane) {
            for (const int side : {X1, Y1}) {
                float& low = candidates.reach[side][s / width];
                low = std::min(low, candidates.at[side][s + lane]);
            }
            for (const int side : {X2, Y2}) {
                float& high = candidates.reach[side][s / width];
                high = std::max(high, candidates.at[side][s + lane]);
            }
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// Step 2

template <SoftLabelCost COST> class Choice {
public:
    Choice(const DynamicSoftLabelArguments& a, std::int64_t most)
        : a_(a), ious_(most + width), parts_(2, most + width, 0.0f), slots_(most + width), best_(a.topk),
          bounds_(a.topk), lowest_(a.topk) {}

    // The k candidates of box `truth` of image i.
    void take(std::int64_t i, const Image& image, int truth, std::vector<Claim>& claims) {
        const Candidates& candidates = image.candidates;
        const PlainBox<Floats> box = splat_box(image.truths.box, truth);
        label_ = image.truths.label[truth];
        image_ = i;

        // 1. Candidates with an IoU above 0, and the topk highest of these.
        const int count = meet(candidates, box, splat(image.truths.box[AREA][truth]));
        float sum = 0;
        for (int n = 0, found = highest(count); n < found; ++n) sum += best_[n];
        const int k = std::max(1, std::min(a_.topk, int(sum)));

        // 2. Their bounds; then the costs of the k lowest, which bound those of interest.
        const auto bound = [&](int n) { return load(parts_[0] + n) + load(parts_[1] + n); };
        bounds_.reset(k);
        for (int n = 0; n < count; n += width) {
            const Floats x = gathered(candidates.at[X], n), y = gathered(candidates.at[Y], n),
                         stride = gathered(candidates.at[STRIDE], n);
            store(parts_[0] + n, iou_cost(load(ious_.data() + n), a_.iou_weight));
            store(parts_[1] + n, centre_term<COST>(x, y, stride, box, a_.center_radius));
            const Floats low = bound(n);
            for (std::uint32_t bits = passing(low <= bounds_.worst(), count - n); bits; bits &= bits - 1) {
                const int lane = __builtin_ctz(bits);
                bounds_.insert(low[lane], n + lane);
            }
        }
        float limit = infinity;
        if (bounds_.found() == k) {
            limit = -infinity;
            for (int n = 0; n < k; n += width) {
                const Floats costs =
                    some_costs(candidates, std::min(width, k - n), [&](int m) { return bounds_.slot(n + m); });
                for (int lane = 0; lane < std::min(width, k - n); ++lane)
                    limit = costs[lane] > limit || costs[lane] != costs[lane] ? costs[lane] : limit;
            }
            if (limit != limit) limit = infinity;
        }

        // 3. The costs below that.
        lowest_.reset(k);
        int waiting = 0, places[2 * width];
        const auto look = [&](int some) {
            const Floats costs = some_costs(candidates, some, [&](int m) { return places[m]; });
            for (std::uint32_t bits = passing(costs <= lowest_.worst(), some); bits; bits &= bits - 1) {
                const int lane = __builtin_ctz(bits);
                lowest_.insert(costs[lane], slots_[places[lane]]);
            }
            waiting -= some;
            std::copy_n(places + some, waiting, places);
        };
        for (int n = 0; n < count; n += width) {
            for (std::uint32_t bits = passing(bound(n) <= std::min(limit, lowest_.worst()), count - n); bits;
                 bits &= bits - 1)
                places[waiting++] = n + __builtin_ctz(bits);
            if (waiting >= width) look(width);
        }
        if (waiting > 0) look(waiting);

        // 4. The others, where they could be among the lowest.
        if (lowest_.worst() >= iou_cost(0.0f, a_.iou_weight)) look_at_rest(candidates, box, truth, image);
        for (int n = 0; n < lowest_.found(); ++n) claims.push_back({lowest_.slot(n), truth, lowest_.cost(n)});
    }

private:
    static std::uint32_t passing(Ints mask, int count) {
        const std::uint32_t bits = lane_bits(mask);
        return count < width ? bits & ((1u << count) - 1) : bits;
    }

    Floats gathered(const float* from, int n) const {
        Floats values;
        for (int lane = 0; lane < width; ++lane) values[lane] = from[slots_[n + lane]];
        return values;
    }

    int meet(const Candidates& candidates, const PlainBox<Floats>& box, Floats area) {
        int count = 0;
        const std::int64_t vectors = candidates.vectors();
        for (std::int64_t v = 0; v < vectors; v += width) {
            const PlainBox<Floats> reach = load_box(candidates.reach, v);
            const Ints near = (reach.x1 < box.x2) & (reach.y1 < box.y2) & (reach.x2 > box.x1) & (reach.y2 > box.y1);
            for (std::uint32_t bits = lane_bits(near); bits; bits &= bits - 1) {
                const std::int64_t slot = (v + __builtin_ctz(bits)) * width;
                const Floats common = intersection(load_box(candidates.at, slot), box);
                if (!any(common > 0.0f)) continue;
                const Floats iou = iou_of(common, load(candidates.at[AREA] + slot), area);
                for (std::uint32_t meeting = lane_bits(iou > 0.0f); meeting; meeting &= meeting - 1) {
                    const int lane = __builtin_ctz(meeting);
                    ious_[count] = iou[lane];
                    slots_[count++] = std::int32_t(slot + lane);
                }
            }
        }
        for (int n = 0; n < width; ++n) ious_[count + n] = 0, slots_[count + n] = 0;
        return count;
    }

    // The highest IoUs, highest first; how many.
    int highest(int count) {
        int found = 0;
        float least = 0;
        for (int n = 0; n < count; n += width)
            for (std::uint32_t bits = passing(load(ious_.data() + n) > least, count - n); bits; bits &= bits - 1) {
                const float iou = ious_[n + __builtin_ctz(bits)];
                if (iou <= least) continue;
                int m = found < a_.topk ? found++ : found - 1;
                for (; m > 0 && best_[m - 1] < iou; --m) best_[m] = best_[m - 1];
                best_[m] = iou;
                if (found == a_.topk) least = best_[found - 1];
            }
        return found;
    }

    float value(const Candidates& candidates, std::int32_t slot) const {
        return value_at(a_,
                        image_ * a_.value_image + candidates.point[slot] * a_.value_point + label_ * a_.value_class);
    }

    // The costs of `some` entries of the list, at place(0), place(1), …
    template <class Places> Floats some_costs(const Candidates& candidates, int some, const Places& place) const {
        Floats x{}, iou{}, first{}, second{};
        double bases[width]{};
        for (int lane = 0; lane < some; ++lane) {
            const int n = place(lane);
            x[lane] = value(candidates, slots_[n]);
            bases[lane] = candidates.base[slots_[n]];
            iou[lane] = ious_[n];
            first[lane] = parts_[0][n];
            second[lane] = parts_[1][n];
        }
        WideDoubles base;
        std::memcpy(&base, bases, sizeof base);
        return cost_of(class_cost<COST>(base, x, iou), a_.class_weight, first, second);
    }

    // Pairs whose IoU is 0.
    void look_at_rest(const Candidates& candidates, const PlainBox<Floats>& box, int truth, const Image& image) {
        const Floats area = splat(image.truths.box[AREA][truth]), without = iou_cost(Floats{}, a_.iou_weight);
        for (std::size_t part = 0; part < candidates.found.size(); ++part) {
            const std::int64_t first = std::int64_t(part) * stretch;
            for (int n = 0; n < candidates.found[part]; n += width) {
                const std::int64_t slot = first + n;
                const Floats iou =
                    iou_of(intersection(load_box(candidates.at, slot), box), load(candidates.at[AREA] + slot), area);
                const Floats centre = centre_term<COST>(load(candidates.at[X] + slot), load(candidates.at[Y] + slot),
                                                        load(candidates.at[STRIDE] + slot), box, a_.center_radius);
                const Ints open = (iou == 0.0f) & (without + centre <= lowest_.worst());
                const std::uint32_t bits = passing(open, candidates.found[part] - n);
                if (bits == 0) continue;
                Floats x{};
                for (std::uint32_t left = bits; left; left &= left - 1) {
                    const int lane = __builtin_ctz(left);
                    x[lane] = value(candidates, std::int32_t(slot + lane));
                }
                WideDoubles base;
                std::memcpy(&base, candidates.base.data() + slot, sizeof base);
                const Floats costs = cost_of(class_cost<COST>(base, x, Floats{}), a_.class_weight, without, centre);
                for (std::uint32_t left = bits & lane_bits(costs == costs); left; left &= left - 1) {
                    const int lane = __builtin_ctz(left);
                    lowest_.insert(costs[lane], std::int32_t(slot + lane));
                }
            }
        }
    }

    const DynamicSoftLabelArguments& a_;
    std::vector<float> ious_;
    Columns<float> parts_;  // of the cost: IoU and centre
    std::vector<std::int32_t> slots_;
    std::vector<float> best_;
    Lowest bounds_, lowest_;
    std::int64_t image_ = 0, label_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Steps 3 and 4

void settle(Image& image, const std::vector<Claim>& claims) {
    const std::vector<std::int32_t>& number = image.truths.number;
    for (const Claim& claim : claims) {
        std::int32_t& owner = image.owner[claim.slot];
        if (owner == -1) {
            owner = std::int32_t(&claim - claims.data());
            continue;
        }
        if (owner >= 0) {
            image.contested.push_back(claims[owner]);
            owner = -1 - std::int32_t(image.contested.size());
        }
        Claim& best = image.contested[-2 - owner];
        if (claim.cost < best.cost || (claim.cost == best.cost && number[claim.truth] < number[best.truth]))
            best = claim;
    }
}

// The box of lowest cost for a slot, where `best` is the lowest cost known.
template <SoftLabelCost COST>
void resolve(const DynamicSoftLabelArguments& a, std::int64_t i, const Image& image, Claim& best) {
    const Truths& truths = image.truths;
    const Candidates& candidates = image.candidates;
    const std::int32_t slot = best.slot;
    const PlainBox<Floats> own = splat_box(candidates.at, slot);
    const Floats area = splat(candidates.at[AREA][slot]), x = splat(candidates.at[X][slot]),
                 y = splat(candidates.at[Y][slot]), stride = splat(candidates.at[STRIDE][slot]);
    const std::int64_t row = i * a.value_image + candidates.point[slot] * a.value_point;
    double bases[width];
    std::fill_n(bases, width, candidates.base[slot]);
    WideDoubles base;
    std::memcpy(&base, bases, sizeof base);
    const float without = iou_cost(0.0f, a.iou_weight);
    // An IoU below this costs more than the best, whatever the rounding.
    const auto least_iou = [&] {
        if (without <= best.cost || a.iou_weight < 1e-3f) return -1.0f;
        return float(std::exp(-(double(best.cost) + 1e-4 * std::fabs(best.cost) + 1e-4) / a.iou_weight) * 0.999 - 2e-7);
    };
    float least = least_iou();
    for (int t = 0; t < truths.count; t += width) {
        const PlainBox<Floats> box = load_box(truths.box, t);
        const Floats common = intersection(own, box);
        if (least >= 0 && !any(common > 0.0f)) continue;
        const Floats iou = iou_of(common, area, load(truths.box[AREA] + t));
        if (!any(iou >= least)) continue;
        const Floats first = iou_cost(iou, a.iou_weight),
                     second = centre_term<COST>(x, y, stride, box, a.center_radius);
        std::uint32_t bits = lane_bits(first + second <= best.cost);
        if (truths.count - t < width) bits &= (1u << (truths.count - t)) - 1;
        if (bits == 0) continue;
        Floats value{};
        for (std::uint32_t left = bits; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            value[lane] = value_at(a, row + truths.label[t + lane] * a.value_class);
        }
        const Floats costs = cost_of(class_cost<COST>(base, value, iou), a.class_weight, first, second);
        for (std::uint32_t left = bits & lane_bits(costs <= best.cost); left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            if (costs[lane] < best.cost || (costs[lane] == best.cost && t + lane < best.truth))
                best.cost = costs[lane], best.truth = t + lane;
        }
        least = least_iou();
    }
}

void write(const DynamicSoftLabelArguments& a, std::int64_t i, const Image& image, const Claim& claim) {
    const Truths& truths = image.truths;
    const auto box_of = [](const Columns<float>& from, int row) {
        return PlainBox<float>{from[X1][row], from[Y1][row], from[X2][row], from[Y2][row]};
    };
    const PlainBox<float> own = box_of(image.candidates.at, claim.slot), box = box_of(truths.box, claim.truth);
    const std::int64_t at = i * a.points + image.candidates.point[claim.slot];
    a.index[at] = truths.number[claim.truth] + std::int64_t(1);
    a.iou[at] = iou_of(intersection(own, box), own.area(), box.area());
    a.labels[at] = truths.label[claim.truth];
}

// Boxes [first, last) in the order of the images, and what they take; or contested points.
struct Task {
    std::int64_t image, first, last;
    std::vector<Claim> claims;
};

template <SoftLabelCost COST> void assign(const DynamicSoftLabelArguments& a, int threads) {
    // The boxes that take part.
    std::vector<Image> images;
    std::int64_t boxes = 0;
    images.reserve(a.batch);
    for (std::int64_t i = 0; i < a.batch; ++i) {
        images.emplace_back(a.images[i], a.classes, a.points);
        boxes += images[i].truths.count;
    }
    // Some 100 ns for the classes of a point, half of which are candidates, and 2 µs for a box.
    threads = threads_for(a.batch * a.points * (boxes > 0 ? a.classes : 1) / 2 + boxes * 2000, threads);

    // 1. The candidates.
    const std::int64_t parts = rounded_up(a.points, stretch) / stretch;
    parallel_for(a.batch * parts, threads, [&](std::int64_t t) {
        std::vector<float> values(rounded_up(a.classes, summed), takes_probabilities(COST) ? 0.0f : -100.0f);
        collect<COST>(a, t / parts, int(t % parts), images[t / parts], values);
    });
    if (boxes == 0) return;

    // 2. What the boxes take: a few tasks a thread, so that they share what a task allocates.
    const std::int64_t some = std::max<std::int64_t>(4, boxes / (8 * threads));
    std::vector<Task> tasks;
    for (std::int64_t i = 0; i < a.batch; ++i)
        for (std::int64_t first = 0, count = images[i].truths.count; first < count; first += some)
            tasks.push_back({i, first, std::min(first + some, count), {}});
    parallel_for(tasks.size(), threads, [&](std::int64_t t) {
        Task& task = tasks[t];
        const Image& image = images[task.image];
        Choice<COST> choice(a, std::int64_t(image.candidates.point.size()));
        for (std::int64_t truth = task.first; truth < task.last; ++truth)
            choice.take(task.image, image, int(truth), task.claims);
    });

    // 3. Points taken once.
    parallel_for(a.batch, threads, [&](std::int64_t i) {
        Image& image = images[i];
        std::vector<Claim> claims;
        for (const Task& task : tasks)
            if (task.image == i) claims.insert(claims.end(), task.claims.begin(), task.claims.end());
        image.owner.assign(image.candidates.point.size(), -1);
        settle(image, claims);
        for (const Claim& claim : claims)
            if (image.owner[claim.slot] >= 0) write(a, i, image, claim);
    });

    // 4. The others.
    std::vector<Task> contested;
    for (std::int64_t i = 0; i < a.batch; ++i)
        for (std::int64_t first = 0, count = images[i].contested.size(); first < count; first += 64)
            contested.push_back({i, first, std::min<std::int64_t>(first + 64, count), {}});
    parallel_for(contested.size(), threads, [&](std::int64_t t) {
        const Task& task = contested[t];
        Image& image = images[task.image];
        for (std::int64_t n = task.first; n < task.last; ++n) {
            resolve<COST>(a, task.image, image, image.contested[n]);
            write(a, task.image, image, image.contested[n]);
        }
    });
}

}  // namespace

void dynamic_soft_label(const DynamicSoftLabelArguments& a, int threads) {
    switch (a.cost) {
        case SoftLabelCost::rtmdet: return assign<SoftLabelCost::rtmdet>(a, threads);
        case SoftLabelCost::nanodet: return assign<SoftLabelCost::nanodet>(a, threads);
        case SoftLabelCost::simota: return assign<SoftLabelCost::simota>(a, threads);
        case SoftLabelCost::align_ota: return assign<SoftLabelCost::align_ota>(a, threads);
    }
}

GFLV2_END
