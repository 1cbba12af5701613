// `dynamic_soft_label` on CUDA. The arithmetic is gflv2/dynamic_soft_label.hpp's.
//
//   1. soft_label_points   a thread a point: is it a candidate of its image? The sum over its classes, once a point.
//   2. soft_label_boxes    a block a box, its threads go through the points: each keeps its own list of the highest IoUs,
//                          which the block merges to k; then of the lowest costs, of which the block claims the first k
//                          points. Pairs whose IoU is 0 are looked at only where they could be among these.
//   3. soft_label_finish   a thread a point: from claims to index, IoU and label. For a point that several boxes claim
//                          the whole block goes through the boxes of the image.
//
// A list holds 64-bit keys, the smaller the better: (IoU bits inverted, point) or (ordered cost, point), so that of equal
// costs the lower point is taken, whichever thread found it. A claim is ~(ordered cost, box), and the largest wins, in
// whatever order they come: the lowest cost, then the lower box. Until step 3 the output `index` holds the claims.

#include <algorithm>
#include <stdexcept>

#include "gflv2/api.hpp"
#include "gflv2/dynamic_soft_label.hpp"
#include "gflv2/instances.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

constexpr unsigned point_threads = 128;
constexpr unsigned box_threads = 128;
constexpr int images_per_launch = 64;  // all parameters of a kernel must fit into 4 KB
constexpr int max_topk = 32;           // bounds the shared memory of a block: 33 KB

using Key = long long;
constexpr Key never = 0x7fffffffffffffffll;
constexpr Key unclaimed = -never - 1;

struct Images {
    std::int64_t first;  // index in the batch of image[0]
    SoftLabelImage image[images_per_launch];
};

// What is kept of the points, in the workspace.
struct Kept {
    double* base;          // (B, A) sum over the classes, or NaN: no candidate
    std::uint32_t* taken;  // (B, A) number of claims
};

__device__ inline PlainBox<float> load_box(const float* boxes, std::int64_t row) {
    const float* const at = boxes + 4 * row;
    return {at[0], at[1], at[2], at[3]};
}

__device__ inline bool takes_part(const SoftLabelImage& image, std::int64_t number, int classes) {
    return load_box(image.boxes, number).finite() && image.labels[number] >= 0 && image.labels[number] < classes;
}

__device__ inline Key key_of(float cost, std::int64_t low) { return Key(ordered(cost)) * 0x100000000ll + low; }
// The upper half of a key.
__device__ inline std::int32_t upper(Key key) { return std::int32_t(key >> 32); }

__device__ inline float value_at(const DynamicSoftLabelArguments& a, std::int64_t offset) {
    if (a.dtype == Dtype::float32) return static_cast<const float*>(a.values)[offset];
    if (a.dtype == Dtype::float16) return widen(static_cast<const half*>(a.values)[offset]);
    return widen(static_cast<const bfloat16*>(a.values)[offset]);
}

// The smallest key of the block, known to all threads. scratch: one key a thread.
__device__ inline Key least_of_block(Key key, Key* scratch) {
    scratch[threadIdx.x] = key;
    __syncthreads();
    for (unsigned half = box_threads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && scratch[threadIdx.x + half] < scratch[threadIdx.x])
            scratch[threadIdx.x] = scratch[threadIdx.x + half];
        __syncthreads();
    }
    const Key least = scratch[0];
    __syncthreads();
    return least;
}

// ---------------------------------------------------------------------------------------------------------------------
// Step 1

// Sum of the background terms in `summed` chains, or NaN where some value is unusable.
template <SoftLabelCost COST> __device__ inline double base_of(const DynamicSoftLabelArguments& a, std::int64_t row) {
    constexpr int summed = 16;
    double chain[summed];
    each<summed>(summed, [&](int n) { chain[n] = 0; });
    bool usable = true;
    GFLV2_UNROLL_NEVER
    for (int c = 0; c < a.classes; c += summed)
        each<summed>(summed, [&](int n) {
            if (c + n >= a.classes) return;
            const float x = value_at(a, row + (c + n) * a.value_class);
            usable = usable && usable_value<COST>(x);
            chain[n] += double(ClassTerm<COST, float>(x).background());
        });
    each<8>(8, [&](int n) { chain[n] += chain[n + 8]; });
    each<4>(4, [&](int n) { chain[n] += chain[n + 4]; });
    return usable ? (chain[0] + chain[2]) + (chain[1] + chain[3]) : double(__builtin_nanf(""));
}

template <SoftLabelCost COST>
GFLV2_KERNEL(point_threads)
soft_label_points(GFLV2_CONSTANT DynamicSoftLabelArguments a, GFLV2_CONSTANT Images images, Kept kept,
                  unsigned blocks) {
    const unsigned which = blockIdx.x / blocks;
    const std::int64_t point = std::int64_t(blockIdx.x - which * blocks) * point_threads + threadIdx.x;
    if (point >= a.points) return;
    const SoftLabelImage& image = images.image[which];
    const std::int64_t batch_index = images.first + which, at = batch_index * a.points + point;
    const float x = a.places[2 * point], y = a.places[2 * point + 1], stride = a.strides[point];
    bool candidate = false;
    if (load_box(a.boxes, at).finite()) {
        const std::int64_t count = boxes_of(image);
        for (std::int64_t n = 0; n < count && !candidate; ++n)
            candidate = makes_candidate<COST>(x, y, stride, load_box(image.boxes, n), a.center_radius) &&
                        takes_part(image, n, a.classes);
    }
    a.index[at] = unclaimed;
    kept.taken[at] = 0;
    kept.base[at] =
        candidate ? base_of<COST>(a, batch_index * a.value_image + point * a.value_point) : double(__builtin_nanf(""));
}

// ---------------------------------------------------------------------------------------------------------------------
// Step 2

// The smallest keys of a thread in shared memory, smallest first; `box_threads` apart.
struct KeyList {
    Key* at;
    int size;

    __device__ void clear() const {
        for (int n = 0; n < size; ++n) at[n * box_threads] = never;
    }
    __device__ Key last() const { return at[(size - 1) * box_threads]; }
    __device__ void insert(Key key) const {
        int n = size - 1;
        for (; n > 0 && at[(n - 1) * box_threads] > key; --n) at[n * box_threads] = at[(n - 1) * box_threads];
        at[n * box_threads] = key;
    }
};

// Eight blocks a multiprocessor: left alone, ptxas aims at sixteen and spills for it.
template <SoftLabelCost COST>
GFLV2_KERNEL(box_threads, 8)
soft_label_boxes(GFLV2_CONSTANT DynamicSoftLabelArguments a, GFLV2_CONSTANT Images images, Kept kept, unsigned blocks) {
    GFLV2_SHARED_MEMORY(Key, shared);  // (box_threads,) for the block, then the lists (topk, box_threads)
    const unsigned which = blockIdx.x / blocks;
    const SoftLabelImage& image = images.image[which];
    const std::int64_t number = blockIdx.x - which * blocks, batch_index = images.first + which,
                       first = batch_index * a.points;
    if (number >= boxes_of(image) || !takes_part(image, number, a.classes)) return;  // the whole block
    const PlainBox<float> box = load_box(image.boxes, number);
    const float area = box.area();
    const std::int64_t of_label = batch_index * a.value_image + image.labels[number] * a.value_class;
    const auto iou_at = [&](std::int64_t point) {
        const PlainBox<float> own = load_box(a.boxes, first + point);
        return iou_of(intersection(own, box), own.area(), area);
    };

    // 1. k: the topk highest IoUs are added from the highest down.
    KeyList list{shared + box_threads + threadIdx.x, a.topk};
    list.clear();
    for (std::int64_t point = threadIdx.x; point < a.points; point += box_threads) {
        const double base = kept.base[first + point];
        if (base != base) continue;
        const float iou = iou_at(point);
        if (!(iou > 0.0f)) continue;
        const Key key = Key(0x7fffffff - bits_of(iou)) << 32 | point;
        if (key < list.last()) list.insert(key);
    }
    float sum = 0;
    for (int n = 0, head = 0; n < a.topk; ++n) {
        const Key own = head < a.topk ? list.at[head * box_threads] : never;
        const Key least = least_of_block(own, shared);
        if (least == never) break;  // for all threads
        if (own == least) ++head;
        sum += value_of(0x7fffffff - upper(least));
    }
    const int k = int(sum) < 1 ? 1 : int(sum) > a.topk ? a.topk : int(sum);

    // 2. The k lowest costs: first of pairs that overlap, then of all, where the others could be among them. `limit`
    //    bounds the costs of interest.
    const float without = iou_cost(0.0f, a.iou_weight);
    list.size = k;
    std::int32_t limit = 0x7fffffff;
    for (int rest = 0; rest < 2; ++rest) {
        list.clear();
        for (std::int64_t point = threadIdx.x; point < a.points; point += box_threads) {
            const double base = kept.base[first + point];
            if (base != base) continue;
            const float iou = iou_at(point);
            if (!(iou > 0.0f) && !(rest && iou == 0.0f)) continue;
            const float of_iou = iou_cost(iou, a.iou_weight),
                        centre = centre_term<COST>(a.places[2 * point], a.places[2 * point + 1], a.strides[point], box,
                                                   a.center_radius);
            // Without the class cost: a lower bound.
            const std::int32_t bound = ordered(of_iou + centre);
            if (bound > limit || bound > upper(list.last())) continue;
            const float x = value_at(a, of_label + point * a.value_point),
                        cost = cost_of(class_cost<COST>(base, x, iou), a.class_weight, of_iou, centre);
            if (cost != cost) continue;
            const Key key = key_of(cost, point);
            if (key < list.last()) list.insert(key);
        }
        // The k-th of the block, or `never`. The lists are left as they are.
        Key least = never;
        for (int n = 0, head = 0; n < k; ++n) {
            const Key own = head < k ? list.at[head * box_threads] : never;
            least = least_of_block(own, shared);
            if (least == never) break;
            if (own == least) ++head;
        }
        limit = upper(least);
        if (limit < ordered(without)) break;
    }

    // 3. They are claimed.
    for (int n = 0, head = 0; n < k; ++n) {
        const Key own = head < k ? list.at[head * box_threads] : never;
        const Key least = least_of_block(own, shared);
        if (least == never) break;
        if (own != least) continue;
        ++head;
        const std::int64_t at = first + (own & 0xffffffffll);
        atomic_add(kept.taken + at, 1u);
        atomic_max(reinterpret_cast<Key*>(a.index) + at, ~(Key(upper(own)) * 0x100000000ll + number));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Step 3

template <SoftLabelCost COST>
GFLV2_KERNEL(point_threads, 8)
soft_label_finish(GFLV2_CONSTANT DynamicSoftLabelArguments a, GFLV2_CONSTANT Images images, Kept kept,
                  unsigned blocks) {
    GFLV2_SHARED_MEMORY(Key, shared);  // (point_threads,) for the block, and as much for the points' claims
    static_assert(point_threads == box_threads);
    Key* const claims = shared + point_threads;
    const unsigned which = blockIdx.x / blocks;
    const SoftLabelImage& image = images.image[which];
    const std::int64_t batch_index = images.first + which,
                       start = std::int64_t(blockIdx.x - which * blocks) * point_threads, point = start + threadIdx.x,
                       at = batch_index * a.points + point;
    const std::uint32_t taken = point < a.points ? kept.taken[at] : 0;
    // never: nobody's; negated: of several boxes.
    claims[threadIdx.x] = taken > 0 ? ~Key(a.index[at]) : never;

    // 1. Which points several boxes claim, in the order of the points.
    for (unsigned p = 0; p < point_threads; ++p) {
        const Key contested = least_of_block(taken > 1 && threadIdx.x >= p ? Key(threadIdx.x) : never, shared);
        if (contested == never) break;  // for all threads
        p = unsigned(contested);
        const std::int64_t there = start + p, row = batch_index * a.points + there;
        const PlainBox<float> own = load_box(a.boxes, row);
        const double base = kept.base[row];
        const float x = a.places[2 * there], y = a.places[2 * there + 1], stride = a.strides[there];
        const std::int64_t values = batch_index * a.value_image + there * a.value_point;
        Key best = claims[p];
        const std::int64_t count = boxes_of(image);
        for (std::int64_t number = threadIdx.x; number < count; number += point_threads) {
            if (!takes_part(image, number, a.classes)) continue;
            const PlainBox<float> box = load_box(image.boxes, number);
            const float iou = iou_of(intersection(own, box), own.area(), box.area()),
                        of_iou = iou_cost(iou, a.iou_weight),
                        centre = centre_term<COST>(x, y, stride, box, a.center_radius);
            if (ordered(of_iou + centre) > upper(best)) continue;
            const float value = value_at(a, values + image.labels[number] * a.value_class),
                        cost = cost_of(class_cost<COST>(base, value, iou), a.class_weight, of_iou, centre);
            if (cost != cost) continue;
            const Key key = key_of(cost, number);
            if (key < best) best = key;
        }
        best = least_of_block(best, shared);
        if (threadIdx.x == p) claims[p] = best;
    }

    // 2. The results.
    if (point >= a.points) return;
    if (taken == 0) {
        a.index[at] = 0;
        a.iou[at] = 0.0f;
        a.labels[at] = -1;
        return;
    }
    const std::int64_t number = claims[threadIdx.x] & 0xffffffffll;
    const PlainBox<float> own = load_box(a.boxes, at), box = load_box(image.boxes, number);
    a.index[at] = number + 1;
    a.iou[at] = iou_of(intersection(own, box), own.area(), box.area());
    a.labels[at] = image.labels[number];
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

unsigned grid_size(std::int64_t blocks, std::int64_t images) {
    if (blocks * images > INT32_MAX) throw std::length_error("dynamic_soft_label: more than 2^31 blocks in one launch");
    return unsigned(blocks * images);
}

template <SoftLabelCost COST>
void assign(const DynamicSoftLabelArguments& a, const Images& images, int count, void* stream) {
    Kept kept{};
    kept.base = static_cast<double*>(a.workspace);
    kept.taken = reinterpret_cast<std::uint32_t*>(kept.base + a.batch * a.points);
    const std::int64_t point_blocks = (a.points + point_threads - 1) / point_threads;
    launch(soft_label_points<COST>, grid_size(point_blocks, count), point_threads, 0, stream, a, images, kept,
           unsigned(point_blocks));
    std::int64_t most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, images.image[i].count);
    if (most > 0)
        launch(soft_label_boxes<COST>, grid_size(most, count), box_threads,
               (a.topk + 1) * std::size_t(box_threads) * sizeof(Key), stream, a, images, kept, unsigned(most));
    launch(soft_label_finish<COST>, grid_size(point_blocks, count), point_threads,
           2 * std::size_t(point_threads) * sizeof(Key), stream, a, images, kept, unsigned(point_blocks));
}

}  // namespace

std::size_t dynamic_soft_label_workspace(std::int64_t batch, std::int64_t points) {
    return std::size_t(batch) * points * (sizeof(double) + sizeof(std::uint32_t));
}

void dynamic_soft_label(const DynamicSoftLabelArguments& a, Place place) {
    if (a.topk > max_topk) throw std::invalid_argument("topk: expected at most 32 on CUDA");
    if (a.dtype == Dtype::float64)
        throw std::invalid_argument("dynamic_soft_label: the CUDA kernels take float32, float16 and bfloat16");
    const DeviceGuard guard(place.device);
    for (std::int64_t first = 0; first < a.batch; first += images_per_launch) {
        Images images{};
        images.first = first;
        const int count = int(std::min<std::int64_t>(images_per_launch, a.batch - first));
        std::copy_n(a.images + first, count, images.image);
        switch (a.cost) {
            case SoftLabelCost::rtmdet: assign<SoftLabelCost::rtmdet>(a, images, count, place.stream); break;
            case SoftLabelCost::nanodet: assign<SoftLabelCost::nanodet>(a, images, count, place.stream); break;
            case SoftLabelCost::simota: assign<SoftLabelCost::simota>(a, images, count, place.stream); break;
            case SoftLabelCost::align_ota: assign<SoftLabelCost::align_ota>(a, images, count, place.stream); break;
        }
    }
}

}  // namespace gflv2::cuda
