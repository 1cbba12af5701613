// `task_aligned` on CUDA. The arithmetic is gflv2/task_aligned.hpp's, one point with one box a thread.
//
//   1. task_aligned_clear   every point: no box claims it yet; every box: it has no point yet
//   2. task_aligned_claim   a block owns one box: each thread looks at its share of the points and keeps a list of its
//                           best; from the lists the block takes its candidates, and claims those that lie inside
//   3. task_aligned_settle  every point: the box it goes to (where all boxes around it compete, it meets them one after
//                           the other), with overlap and metric; every box: its highest of both
//   4. task_aligned_keep    where a box keeps some of its points alone: a block owns one box, as in step 2
//   5. task_aligned_finish  every point: label and target
//
// A claim is (overlap bits, inverted box) as one signed 64-bit integer, and the largest wins, in whatever order they
// come: the highest overlap, then the lower box. Until step 3 the output `index` holds the claims.
//
// The images' pointers travel by value, some images a launch: ragged boxes need no packing and no copy to the device.

#include <algorithm>
#include <stdexcept>

#include "gflv2/api.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/task_aligned.hpp"

namespace gflv2::cuda {
namespace {

constexpr unsigned point_threads = 256;
constexpr unsigned box_threads = 128;
constexpr int images_per_launch = 48;  // all parameters of a kernel must fit into 4 KB
constexpr int max_topk = 32;           // bounds the shared memory of a block: 48 KB

using Key = long long;
constexpr Key no_key = -1;  // smaller than every key

struct Images {
    std::int64_t first;  // index in the batch of image[0]
    TaskAlignedImage image[images_per_launch];
};

struct Exponents {
    Exponent alpha, beta;
};

// One box of an image, and what a thread needs of it.
struct Target {
    TaskBox<float> box, limits;
    float angle;
    std::int64_t label;
    bool usable;  // it has a class; else it has no point
};

__device__ inline Target target_of(const TaskAlignedArguments& a, const TaskAlignedImage& image, std::int64_t number) {
    Target target{task_box(image.boxes + 4 * number), {}, 0.0f, image.labels[number], false};
    target.limits = task_limits(target.box, a.min_side);
    if (a.ciou) target.angle = box_angle(target.box);
    target.usable = target.label >= 0 && target.label < a.classes;
    return target;
}

// One point of an image.
struct Point {
    std::int64_t at;  // in (B, A)
    float x, y;
};

__device__ inline bool inside(const TaskAlignedArguments& a, std::int64_t point, const TaskBox<float>& limits) {
    return is_inside(a.positions[2 * point], a.positions[2 * point + 1], limits, a.margin);
}

struct Pair {
    float overlap, metric;
    bool counts;
};

__device__ inline Pair pair_of(const TaskAlignedArguments& a, const Exponents& exponents, std::int64_t image,
                               std::int64_t point, const Target& target) {
    const TaskBox<float> pred = task_box(a.boxes + 4 * (image * a.points + point));
    const TaskOverlap<float> shared = task_overlap(a.ciou, pred, target.box, target.angle);
    const float score = score_at(a, image * a.image_stride + point * a.point_stride + target.label * a.class_stride);
    const TaskMetric<float> metric = task_metric(exponents.alpha, exponents.beta, score, shared);
    return {shared.value, metric.value, metric.counts};
}

// ---------------------------------------------------------------------------------------------------------------------
// Every point

GFLV2_KERNEL(point_threads)
task_aligned_clear(GFLV2_CONSTANT TaskAlignedArguments a, GFLV2_CONSTANT Images images, unsigned blocks) {
    const unsigned which = blockIdx.x / blocks;
    const TaskAlignedImage& image = images.image[which];
    const std::int64_t point = std::int64_t(blockIdx.x - which * blocks) * point_threads + threadIdx.x;
    for (std::int64_t g = point; g < image.count; g += std::int64_t(blocks) * point_threads)
        a.most[2 * (image.first + g)] = a.most[2 * (image.first + g) + 1] = 0;
    if (point >= a.points) return;
    const std::int64_t at = (images.first + which) * a.points + point;
    a.index[at] = no_key;
    a.claims[at] = 0;
}

// What a box's points have at most.
__device__ inline void raise_most(const TaskAlignedArguments& a, std::int64_t box, float metric, float overlap) {
    if (!a.normalize) return;
    Key* const most = a.most + 2 * box;
    if (as_bits(metric) > atomic_load(most)) atomic_max(most, Key(as_bits(metric)));
    if (as_bits(overlap) > atomic_load(most + 1)) atomic_max(most + 1, Key(as_bits(overlap)));
}

GFLV2_KERNEL(point_threads)
task_aligned_settle(GFLV2_CONSTANT TaskAlignedArguments a, GFLV2_CONSTANT Images images, Exponents exponents,
                    unsigned blocks) {
    const unsigned which = blockIdx.x / blocks;
    const std::int64_t point = std::int64_t(blockIdx.x - which * blocks) * point_threads + threadIdx.x;
    if (point >= a.points) return;
    const TaskAlignedImage& image = images.image[which];
    const std::int64_t number = images.first + which, at = number * a.points + point;
    const Key claim = a.index[at];
    if (claim == no_key) {
        a.index[at] = 0;
        a.iou[at] = a.targets[at] = 0.0f;
        return;
    }

    // 1. Its box.
    std::int64_t best = name_of_key(claim);
    if (a.containing && a.claims[at] > 1) {
        float most = -1.0f;
        for (std::int64_t g = 0, count = boxes_of(image); g < count; ++g) {
            const TaskBox<float> box = task_box(image.boxes + 4 * g);
            if (!inside(a, point, task_limits(box, a.min_side))) continue;
            const Target target = target_of(a, image, g);
            if (!target.usable) continue;
            const Pair pair = pair_of(a, exponents, number, point, target);
            if (!pair.counts || !(pair.overlap > most)) continue;
            most = pair.overlap;
            best = g;
        }
    }

    // 2. What it is to its box.
    const Pair pair = pair_of(a, exponents, number, point, target_of(a, image, best));
    a.index[at] = best + 1;
    a.iou[at] = pair.overlap;
    a.targets[at] = pair.metric;
    if (a.final_topk == 0) raise_most(a, image.first + best, pair.metric, pair.overlap);
}

GFLV2_KERNEL(point_threads)
task_aligned_finish(GFLV2_CONSTANT TaskAlignedArguments a, GFLV2_CONSTANT Images images, unsigned blocks) {
    const unsigned which = blockIdx.x / blocks;
    const std::int64_t point = std::int64_t(blockIdx.x - which * blocks) * point_threads + threadIdx.x;
    if (point >= a.points) return;
    const TaskAlignedImage& image = images.image[which];
    const std::int64_t at = (images.first + which) * a.points + point, box = a.index[at] - 1;
    if (box < 0 || (a.final_topk > 0 && a.claims[at] == 0)) {
        a.index[at] = 0;
        a.labels[at] = -1;
        a.iou[at] = a.targets[at] = 0.0f;
        return;
    }
    a.labels[at] = image.labels[box];
    if (!a.normalize) return;
    const Key* const most = a.most + 2 * (image.first + box);
    a.targets[at] = a.targets[at] * as_float(std::uint32_t(most[1])) / (as_float(std::uint32_t(most[0])) + a.eps);
}

// ---------------------------------------------------------------------------------------------------------------------
// Every box

// The best keys of one thread, best first: in registers, or, for a number that is no constant, in shared memory.
template <int K> struct KeyList {
    Key keys[K];
    __device__ Key& key(int n) { return keys[n]; }
};
template <> struct KeyList<0> {
    Key* memory;
    __device__ Key& key(int n) { return memory[n * box_threads]; }
};

// Shared memory of a block.
struct BoxMemory {
    Key* heads;     // (threads,): the best key of each
    Key* entries;   // (topk²,)
    Key* selected;  // (topk,), best first
    Key* least;     // (1,)
    std::uint32_t* count;
    Key* lists;  // (topk, threads); only where topk is no constant
};

inline std::size_t shared_bytes(int topk, bool lists) {
    return (box_threads + std::size_t(topk) * topk + topk + 2 + (lists ? box_threads * std::size_t(topk) : 0)) *
           sizeof(Key);
}

__device__ inline BoxMemory box_memory(Key* memory, int topk) {
    BoxMemory m;
    m.heads = memory;
    m.entries = m.heads + box_threads;
    m.selected = m.entries + topk * topk;
    m.least = m.selected + topk;
    m.count = reinterpret_cast<std::uint32_t*>(m.least + 1);
    m.lists = m.least + 2;
    return m;
}

// The `topk` largest of key_of(p) over the points, largest first, into memory.selected; returns how many there are
// (no_key is none).
//
//   1. Each thread lists the best of its share.
//   2. The topk best heads of lists: no thread but theirs has a key of the result, and no such key is below the last.
//   3. The keys of those threads that are not below it, at most topk², find their ranks among each other.
template <int K, class KeyOf>
__device__ inline int select_keys(const TaskAlignedArguments& a, int topk, const BoxMemory& memory,
                                  const KeyOf& key_of) {
    KeyList<K> list;
    if constexpr (K == 0) list.memory = memory.lists + threadIdx.x;
    each<K>(topk, [&](int n) { list.key(n) = no_key; });
    Key last = no_key;
    for (std::int64_t p = threadIdx.x; p < a.points; p += box_threads) {
        const Key key = key_of(p);
        if (key <= last) continue;
        each<K>(topk, [&](int i) {
            const int n = topk - 1 - i;
            const Key before = n > 0 ? list.key(n - 1) : key;
            if (n > 0 && key > before) list.key(n) = before;
            else if (key > list.key(n)) list.key(n) = key;
        });
        last = list.key(topk - 1);
    }

    const Key head = list.key(0);
    memory.heads[threadIdx.x] = head;
    if (threadIdx.x == 0) *memory.least = 0, *memory.count = 0;
    __syncthreads();
    int rank = 0;
    for (unsigned t = 0; t < box_threads; ++t) rank += memory.heads[t] > head;
    if (head != no_key && rank == topk - 1) *memory.least = head;
    __syncthreads();
    if (head != no_key && rank < topk) {
        each<K>(topk, [&](int n) {
            if (list.key(n) >= *memory.least) memory.entries[atomic_add(memory.count, 1u)] = list.key(n);
        });
    }
    __syncthreads();
    const int count = int(*memory.count);
    for (int i = threadIdx.x; i < count; i += box_threads) {
        const Key key = memory.entries[i];
        int place = 0;
        for (int other = 0; other < count; ++other) place += memory.entries[other] > key;
        if (place < topk) memory.selected[place] = key;
    }
    __syncthreads();
    return count < topk ? count : topk;
}

// The rank of a point of metric 0 among all such points of its image; −1 for one that is selected.
__device__ inline std::int64_t rank_of_zero(std::int64_t point, const BoxMemory& memory, int found) {
    std::int64_t rank = point;
    for (int n = 0; n < found; ++n) {
        const std::int64_t other = name_of_key(memory.selected[n]);
        if (other == point) return -1;
        rank -= other < point;
    }
    return rank;
}

// Six blocks a multiprocessor: left alone, ptxas aims at ten and spills for it.
template <int K>
GFLV2_KERNEL(box_threads, 6)
task_aligned_claim(GFLV2_CONSTANT TaskAlignedArguments a, GFLV2_CONSTANT Images images, Exponents exponents,
                   unsigned blocks) {
    GFLV2_SHARED_MEMORY(Key, shared);
    const int topk = K > 0 ? K : a.topk;
    const BoxMemory memory = box_memory(shared, topk);

    // 1. The block's box.
    const unsigned which = blockIdx.x / blocks;
    const TaskAlignedImage& image = images.image[which];
    const std::int64_t number = images.first + which, g = blockIdx.x - which * blocks;
    if (g >= boxes_of(image)) return;
    const Target target = target_of(a, image, g);
    if (!target.usable) return;

    // 2. Its candidates.
    const int found = select_keys<K>(a, topk, memory, [&](std::int64_t p) {
        if (a.inside && !inside(a, p, target.limits)) return no_key;
        const Pair pair = pair_of(a, exponents, number, p, target);
        return pair.metric > 0.0f ? task_key(pair.metric, p) : no_key;
    });

    // 3. Those inside are claimed, and, where the list is not full, points of metric 0 in their order.
    const int room = topk < a.points ? topk : int(a.points);
    std::int64_t point = -1;
    if (int(threadIdx.x) < found) {
        point = name_of_key(memory.selected[threadIdx.x]);
    } else if (a.zeros && int(threadIdx.x) - found < room) {
        const std::int64_t zero = int(threadIdx.x) - found;
        const std::int64_t rank = rank_of_zero(zero, memory, found);
        if (rank >= 0 && rank < room - found) point = zero;
    }
    if (point < 0 || !inside(a, point, target.limits)) return;
    const Pair pair = pair_of(a, exponents, number, point, target);
    if (!pair.counts) return;
    const std::int64_t at = number * a.points + point;
    atomic_max(reinterpret_cast<Key*>(a.index) + at, task_key(pair.overlap, g));
    atomic_add(a.claims + at, 1u);
}

// `claims` says afterwards whether a point is kept.
template <int K>
GFLV2_KERNEL(box_threads)
task_aligned_keep(GFLV2_CONSTANT TaskAlignedArguments a, GFLV2_CONSTANT Images images, unsigned blocks) {
    GFLV2_SHARED_MEMORY(Key, shared);
    const int topk = K > 0 ? K : a.final_topk;
    const BoxMemory memory = box_memory(shared, topk);
    const unsigned which = blockIdx.x / blocks;
    const TaskAlignedImage& image = images.image[which];
    const std::int64_t base = (images.first + which) * a.points, g = blockIdx.x - which * blocks;
    if (g >= boxes_of(image)) return;

    const int found = select_keys<K>(a, topk, memory, [&](std::int64_t p) {
        return a.index[base + p] == g + 1 && a.targets[base + p] > 0.0f ? task_key(a.targets[base + p], p) : no_key;
    });
    for (std::int64_t p = threadIdx.x; p < a.points; p += box_threads) {
        if (a.index[base + p] != g + 1) continue;
        const float metric = a.targets[base + p];
        bool kept;
        if (metric > 0.0f) {
            kept = task_key(metric, p) >= memory.selected[found - 1];
        } else {
            kept = rank_of_zero(p, memory, found) < topk - found;
        }
        a.claims[base + p] = kept;
        if (kept) raise_most(a, image.first + g, metric, a.iou[base + p]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

unsigned grid_size(std::int64_t blocks, std::int64_t images) {
    if (blocks * images > INT32_MAX) throw std::length_error("task_aligned: more than 2^31 blocks in one launch");
    return unsigned(blocks * images);
}

void assign(const TaskAlignedArguments& a, const Images& images, int count, void* stream) {
    const Exponents exponents{exponent_of(a.alpha), exponent_of(a.beta)};
    const std::int64_t point_blocks = (a.points + point_threads - 1) / point_threads;
    const unsigned point_grid = grid_size(point_blocks, count);
    launch(task_aligned_clear, point_grid, point_threads, 0, stream, a, images, unsigned(point_blocks));
    std::int64_t most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, images.image[i].count);
    if (most > 0) {
        const unsigned box_grid = grid_size(most, count), blocks = unsigned(most);
        const bool ten = a.topk == 10, thirteen = a.topk == 13;
        launch(ten        ? task_aligned_claim<10>
               : thirteen ? task_aligned_claim<13>
                          : task_aligned_claim<0>,
               box_grid, box_threads, shared_bytes(a.topk, !ten && !thirteen), stream, a, images, exponents, blocks);
    }
    launch(task_aligned_settle, point_grid, point_threads, 0, stream, a, images, exponents, unsigned(point_blocks));
    if (most > 0 && a.final_topk > 0) {
        const bool one = a.final_topk == 1;
        launch(one ? task_aligned_keep<1> : task_aligned_keep<0>, grid_size(most, count), box_threads,
               shared_bytes(a.final_topk, !one), stream, a, images, unsigned(most));
    }
    launch(task_aligned_finish, point_grid, point_threads, 0, stream, a, images, unsigned(point_blocks));
}

}  // namespace

void task_aligned(const TaskAlignedArguments& a, Place place) {
    if (a.topk > max_topk || a.final_topk > max_topk) throw std::invalid_argument("topk: expected at most 32 on CUDA");
    const DeviceGuard guard(place.device);
    for (std::int64_t first = 0; first < a.batch; first += images_per_launch) {
        Images images{};
        images.first = first;
        const int count = int(std::min<std::int64_t>(images_per_launch, a.batch - first));
        std::copy_n(a.images + first, count, images.image);
        assign(a, images, count, place.stream);
    }
}

}  // namespace gflv2::cuda
