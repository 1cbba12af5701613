// `atss` on a CPU. The arithmetic is gflv2/atss.hpp's, with one box in each lane.
//
//   1. Where there are ignore boxes: which points they cover.
//   2. Boxes find their positive points, some vectors of boxes a task, while other tasks fill the outputs with
//      "negative".
//   3. What the boxes found is written. Of several claims to a point the highest IoU wins, then the lower box: the
//      order in which threads found them does not matter.
// Memory grows with the boxes: a claim is 12 bytes, and a box has at most topk a level.

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"
#include "cpu/parallel.hpp"
#include "gflv2/atss.hpp"

GFLV2_BEGIN

namespace {

constexpr int boxes_per_vector = lanes<float>;
constexpr std::int64_t boxes_per_task = 64;     // some 15 µs
constexpr std::int64_t points_per_fill = 8192;  // 160 KB of outputs
// Below these one thread does the work: starting the others takes longer. A box costs some 170 ns, a point 0.26 ns.
constexpr std::int64_t work_worth_threads = 40000;  // nanoseconds
constexpr std::int64_t claims_worth_threads = 4096;

// Box `box` of its image claims point `point`.
struct Claim {
    std::int32_t point, box;
    float iou;
};

// The candidates of one vector of boxes: level by level, nearest first.
template <int K> class Candidates {
public:
    explicit Candidates(const AtssArguments& a) : a_(a), topk_(K > 0 ? K : a.topk) {
        const std::size_t places = std::size_t(topk_) * a.level_count;
        if (K == 0) memory_.resize(places + 3 * std::size_t(topk_)), ious_memory_.resize(places);
    }

    // Positive points of boxes [first, first + count) of an image.
    void claim(const AtssImage& image, std::int64_t first, int count, const std::uint8_t* ignored,
               std::vector<Claim>& claims) {
        const AtssBox<Floats> box = load_boxes(image.boxes + 4 * first, count);
        const std::uint32_t usable = lane_bits(box.complete()) & (~0u >> (32 - count));

        // 1. The nearest points of each level, and their IoUs.
        int found = 0, of_level[max_levels];
        for (int l = 0; l < a_.level_count; ++l) {
            of_level[l] = std::min(topk_, cells_of(a_, image, l));
            if (of_level[l] == 0) continue;
            search(image, l, box, usable, ignored, of_level[l], names() + found);
            for (int n = 0; n < of_level[l]; ++n, ++found) {
                const Place at = place(l, names()[found]);
                ious()[found] = anchor_iou(at.x, at.y, a_.level[l].half, box);
            }
        }
        if (found < 2) return;

        // 2. Threshold, and who passes it.
        const Floats threshold = iou_threshold(found, [&](int n) { return ious()[n]; });
        for (int l = 0, n = 0; l < a_.level_count; ++l)
            for (const int end = n + of_level[l]; n < end; ++n) {
                const Place at = place(l, names()[n]);
                std::uint32_t passed = usable & lane_bits(is_positive(at.x, at.y, box, ious()[n], threshold));
                for (; passed; passed &= passed - 1) {
                    const int lane = __builtin_ctz(passed);
                    const std::int32_t point =
                        std::int32_t(a_.level[l].first_point) + index_of(a_.level[l], names()[n][lane]);
                    claims.push_back({point, std::int32_t(first + lane), ious()[n][lane]});
                }
            }
    }

private:
    struct Place {
        Floats x, y;
    };

    static AtssBox<Floats> load_boxes(const float* boxes, int count) {
        float sides[4][boxes_per_vector];
        for (int lane = 0; lane < boxes_per_vector; ++lane)
            for (int side = 0; side < 4; ++side)
                sides[side][lane] = lane < count ? boxes[4 * lane + side] : __builtin_nanf("");
        return {load(sides[0]), load(sides[1]), load(sides[2]), load(sides[3])};
    }

    void search(const AtssImage& image, int l, const AtssBox<Floats>& box, std::uint32_t usable,
                const std::uint8_t* ignored, int wanted, Ints* to) {
        const AtssLevel& level = a_.level[l];
        const Floats x = box.centre_x(), y = box.centre_y();
        const std::uint8_t* level_ignored = ignored ? ignored + level.first_point : nullptr;
        NearestList<Floats, K> list = vector_list();
        std::uint32_t alone = 0;  // boxes that need a search of their own
        if (level.points) {
            search_points(level.points, level.width, x, y, list, level_ignored);
        } else if (ignored) {
            alone = usable;
        } else {
            const Ints proven = search_window(grid_of(a_, image, l), x, y, first_window(topk_), list, false,
                                              [](Ints, Ints) { return Ints{}; });
            alone = usable & ~lane_bits(proven);
        }
        for (int n = 0; n < wanted; ++n) to[n] = list.name(n);
        for (; alone; alone &= alone - 1) {
            const int lane = __builtin_ctz(alone);
            NearestList<float, K> one = number_list();
            search_grid(grid_of(a_, image, l), x[lane], y[lane], topk_, one, ignored != nullptr,
                        [&](int row, int column) {
                return level_ignored != nullptr && level_ignored[row * level.width + column] != 0;
            });
            for (int n = 0; n < wanted; ++n) to[n][lane] = one.name(n);
        }
    }

    Place place(int l, Ints name) const {
        const AtssLevel& level = a_.level[l];
        if (!level.points) {
            const AtssGrid grid{0, 0, level.stride, 0, a_.offset};
            return {coordinate<Floats>(name & 0xffff, grid), coordinate<Floats>(shifted_right(name, 16), grid)};
        }
        Place at;
        for (int lane = 0; lane < boxes_per_vector; ++lane) {
            at.x[lane] = level.points[2 * std::int64_t(name[lane])];
            at.y[lane] = level.points[2 * std::int64_t(name[lane]) + 1];
        }
        return at;
    }

    // Names and IoUs of all candidates; for a K known to the compiler on the stack, else behind one another in memory_,
    // followed by the lists in use.
    Ints* names() { return K > 0 ? fixed_names_ : memory_.data(); }
    Floats* ious() { return K > 0 ? fixed_ious_ : ious_memory_.data(); }
    NearestList<Floats, K> vector_list() {
        if constexpr (K > 0) return {};
        else return {spare(), topk_, 1};
    }
    NearestList<float, K> number_list() {
        if constexpr (K > 0) return {};
        else return {reinterpret_cast<std::int32_t*>(spare() + 2 * topk_), topk_, 1};
    }
    Ints* spare() { return memory_.data() + std::size_t(topk_) * a_.level_count; }

    const AtssArguments& a_;
    const int topk_;
    static constexpr int fixed_places = K > 0 ? K* max_levels : 1;
    Ints fixed_names_[fixed_places];
    Floats fixed_ious_[fixed_places];
    std::vector<Ints> memory_;
    std::vector<Floats> ious_memory_;
};

// Boxes [first, last) of one image, and what they claim; or, where last is 0, points to fill with "negative" from first
// on.
struct AtssTask {
    std::int64_t image, first, last;
    std::vector<Claim> claims;
};

void mark_ignored(const AtssArguments& a, const AtssImage& image, std::uint8_t* ignored) {
    for (int l = 0; l < a.level_count; ++l) {
        const AtssLevel& level = a.level[l];
        std::uint8_t* to = ignored + level.first_point;
        std::memset(to, 0, std::size_t(level.height) * level.width);
        for (int row = 0; row < image.rows[l]; ++row)
            for (int column = 0; column < image.columns[l]; ++column)
                to[row * level.width + column] = is_ignored(a, image, l, row, column);
    }
}

template <int K> void claim_boxes(const AtssArguments& a, AtssTask& task, const std::uint8_t* ignored) {
    const AtssImage& image = a.images[task.image];
    Candidates<K> candidates(a);
    for (std::int64_t first = task.first; first < task.last; first += boxes_per_vector)
        candidates.claim(image, first, int(std::min<std::int64_t>(boxes_per_vector, task.last - first)), ignored,
                         task.claims);
}

void fill(const AtssArguments& a, const AtssTask& task, bool has_boxes, const std::uint8_t* ignored) {
    const std::int64_t count = std::min(points_per_fill, a.points - task.first),
                       from = task.image * a.points + task.first;
    std::memset(a.labels + from, 0xff, count * sizeof *a.labels);
    std::fill_n(a.iou + from, count, has_boxes ? -1e8f : 0.0f);
    if (!ignored || !has_boxes) {
        std::memset(a.index + from, 0, count * sizeof *a.index);
    } else {
        for (std::int64_t p = 0; p < count; ++p) a.index[from + p] = -std::int64_t(ignored[task.first + p]);
    }
}

// Claims to the points [from, to) of the task's image.
void settle(const AtssArguments& a, const AtssTask& task, std::int64_t from, std::int64_t to) {
    const AtssImage& image = a.images[task.image];
    const std::int64_t base = task.image * a.points;
    for (const Claim& claim : task.claims) {
        if (claim.point < from || claim.point >= to) continue;
        float& iou = a.iou[base + claim.point];
        std::int64_t& index = a.index[base + claim.point];
        if (claim.iou > iou || (claim.iou == iou && claim.box + 1 < index)) {
            iou = claim.iou;
            index = claim.box + 1;
            a.labels[base + claim.point] = image.labels[claim.box];
        }
    }
}

}  // namespace

void atss(const AtssArguments& a, int threads) {
    // 1. Which points ignore boxes cover.
    const auto ignored_of = [&](std::int64_t image) {
        return a.ignoring && a.images[image].ignore_count > 0 ? a.ignored + image * a.points : nullptr;
    };
    if (a.ignoring)
        parallel_for(a.batch, threads, [&](std::int64_t image) {
            if (ignored_of(image)) mark_ignored(a, a.images[image], ignored_of(image));
        });

    // 2. Boxes find their points; outputs are filled. The longer tasks come first.
    std::vector<AtssTask> tasks;
    for (std::int64_t image = 0; image < a.batch; ++image)
        for (std::int64_t first = 0, count = boxes_of(a.images[image]); first < count; first += boxes_per_task)
            tasks.push_back({image, first, std::min(first + boxes_per_task, count), {}});
    const std::int64_t searches = tasks.size();
    if (searches * boxes_per_task * 170 + a.batch * a.points / 4 < work_worth_threads) threads = 1;
    for (std::int64_t image = 0; image < a.batch; ++image)
        for (std::int64_t first = 0; first < a.points; first += points_per_fill) tasks.push_back({image, first, 0, {}});
    parallel_for(tasks.size(), threads, [&](std::int64_t t) {
        AtssTask& task = tasks[t];
        if (t >= searches) return fill(a, task, boxes_of(a.images[task.image]) > 0, ignored_of(task.image));
        return a.topk == 9 ? claim_boxes<9>(a, task, ignored_of(task.image))
                           : claim_boxes<0>(a, task, ignored_of(task.image));
    });

    // 3. Claims are settled, by ranges of points where there are threads enough.
    std::int64_t claims = 0;
    for (std::int64_t t = 0; t < searches; ++t) claims += tasks[t].claims.size();
    const std::int64_t parts = claims < claims_worth_threads ? 1 : threads;
    parallel_for(parts, threads, [&](std::int64_t part) {
        for (std::int64_t t = 0; t < searches; ++t)
            settle(a, tasks[t], a.points * part / parts, a.points * (part + 1) / parts);
    });
}

GFLV2_END
