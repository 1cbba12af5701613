// `atss` on CUDA. The arithmetic is gflv2/atss.hpp's; one thread owns one box on one level.
//
//   1. atss_clear    every point: no box claims it yet; where there are ignore boxes, do they cover it?
//   2. atss_claim    a block owns some boxes of one image, a thread one level of one of them: it finds the nearest
//                    points and their IoUs; with the IoUs of all levels in shared memory it forms the box's threshold,
//                    and claims its positive points.
//   3. atss_finish   every point: from claims to index, IoU and label.
//
// A claim is (IoU bits, inverted box) as one signed 64-bit integer, and the largest wins, in whatever order they come:
// the highest IoU, then the lower box. Until step 3 the output `index` holds the claims.
//
// The images' pointers travel by value, some images a launch: ragged boxes need no packing and no copy to the device.

#include <algorithm>
#include <stdexcept>

#include "gflv2/api.hpp"
#include "gflv2/atss.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

constexpr unsigned point_threads = 256;
constexpr unsigned box_threads = 128;
constexpr int images_per_launch = 24;  // all parameters of a kernel must fit into 4 KB
constexpr int max_topk = 32;           // bounds the shared memory of a block: 48 KB

using Claim = long long;
constexpr Claim unclaimed = -1;

__device__ inline Claim claim_of(float iou, std::int64_t box) { return Claim(as_bits(iou)) << 32 | (0x7fffffff - box); }

struct Images {
    std::int64_t first;  // index in the batch of image[0]
    AtssImage image[images_per_launch];
};

__device__ inline AtssBox<float> box_of(const AtssImage& image, std::uint32_t number) {
    const float* at = image.boxes + 4 * std::int64_t(number);
    return {at[0], at[1], at[2], at[3]};
}

// ---------------------------------------------------------------------------------------------------------------------
// Every point

GFLV2_KERNEL(point_threads) atss_clear(GFLV2_CONSTANT AtssArguments a, GFLV2_CONSTANT Images images, unsigned blocks) {
    const unsigned which = blockIdx.x / blocks;
    const std::int64_t point = std::int64_t(blockIdx.x - which * blocks) * point_threads + threadIdx.x;
    if (point >= a.points) return;
    const AtssImage& image = images.image[which];
    const std::int64_t at = (images.first + which) * a.points + point;
    a.index[at] = unclaimed;
    if (!a.ignoring) return;

    int l = 0;
    while (l + 1 < a.level_count && point >= a.level[l + 1].first_point) ++l;
    const AtssLevel& level = a.level[l];
    const int cell = int(point - level.first_point), row = cell / level.width, column = cell - row * level.width;
    a.ignored[at] = row < image.rows[l] && column < image.columns[l] && is_ignored(a, image, l, row, column);
}

GFLV2_KERNEL(point_threads) atss_finish(GFLV2_CONSTANT AtssArguments a, GFLV2_CONSTANT Images images, unsigned blocks) {
    const unsigned which = blockIdx.x / blocks;
    const std::int64_t point = std::int64_t(blockIdx.x - which * blocks) * point_threads + threadIdx.x;
    if (point >= a.points) return;
    const AtssImage& image = images.image[which];
    const std::int64_t at = (images.first + which) * a.points + point;
    const bool has_boxes = boxes_of(image) > 0;
    const Claim claim = a.index[at];
    if (claim == unclaimed) {
        a.index[at] = a.ignoring && has_boxes && a.ignored[at] ? -1 : 0;
        a.iou[at] = has_boxes ? -1e8f : 0.0f;
        a.labels[at] = -1;
    } else {
        const std::int64_t box = 0x7fffffff - (claim & 0x7fffffff);
        a.index[at] = box + 1;
        a.iou[at] = as_float(std::uint32_t(claim >> 32));
        a.labels[at] = image.labels[box];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Every box

// Shared memory of a block of `boxes` boxes: the IoUs of their candidates, box by box within a candidate; and for a
// topk that is no constant the lists of the threads.
inline std::size_t shared_bytes(const AtssArguments& a, int boxes, bool lists) {
    return (std::size_t(boxes) * a.level_count * a.topk + (lists ? 2 * std::size_t(box_threads) * a.topk : 0)) *
           sizeof(float);
}

template <int K> __device__ inline NearestList<float, K> list_of(float* lists, int topk) {
    if constexpr (K > 0) {
        return {};
    } else {
        return {reinterpret_cast<std::int32_t*>(lists) + threadIdx.x, topk, int(box_threads)};
    }
}

// Eight blocks a multiprocessor: left alone, ptxas aims at ten and spills for it.
template <int K>
GFLV2_KERNEL(box_threads, 8)
atss_claim(GFLV2_CONSTANT AtssArguments a, GFLV2_CONSTANT Images images, unsigned blocks, int boxes) {
    GFLV2_SHARED_MEMORY(float, ious);  // (L·topk, boxes), then the lists
    const int topk = K > 0 ? K : a.topk;

    // 1. The thread's image, level and box. Threads of a warp share a level, so that they take the same way.
    const unsigned which = blockIdx.x / blocks;
    const AtssImage& image = images.image[which];
    const int l = threadIdx.x / boxes, slot = threadIdx.x - l * boxes;
    const std::uint32_t number = (blockIdx.x - which * blocks) * boxes + slot;  // below 2^31 + 128
    bool working = l < a.level_count && number < boxes_of(image);
    if (working) working = box_of(image, number).complete();  // a box with a NaN has no positive point
    // Candidates of the levels before this one, of this one, and of all.
    int before = 0, found = 0, all = 0;
    for (int m = 0; m < a.level_count; ++m) {
        const int cells = cells_of(a, image, m), of_level = topk < cells ? topk : cells;
        if (m < l) before += of_level;
        if (m == l) found = of_level;
        all += of_level;
    }
    working = working && found > 0 && all > 1;

    // 2. The nearest points of the level, and their IoUs.
    const AtssLevel& level = a.level[working ? l : 0];
    NearestList<float, K> list = list_of<K>(ious + boxes * a.level_count * topk, topk);
    const auto place = [&](int name, float& x, float& y) {
        const AtssGrid grid{0, 0, level.stride, 0, a.offset};
        x = level.points ? level.points[2 * std::int64_t(name)] : coordinate<float>(name & 0xffff, grid);
        y = level.points ? level.points[2 * std::int64_t(name) + 1] : coordinate<float>(shifted_right(name, 16), grid);
    };
    if (working) {
        const AtssBox<float> box = box_of(image, number);
        const std::uint8_t* ignored =
            a.ignoring ? a.ignored + (images.first + which) * a.points + level.first_point : nullptr;
        if (level.points) {
            search_points(level.points, level.width, box.centre_x(), box.centre_y(), list, ignored);
        } else {
            search_grid(
                grid_of(a, image, l), box.centre_x(), box.centre_y(), topk, list, a.ignoring,
                [&](int row, int column) { return ignored != nullptr && ignored[row * level.width + column] != 0; });
        }
        each<K>(topk, [&](int n) {
            if (n >= found) return;
            float x, y;
            place(list.name(n), x, y);
            ious[(before + n) * boxes + slot] = anchor_iou(x, y, level.half, box);
        });
    }
    __syncthreads();
    if (!working) return;

    // 3. The threshold of the box (all its threads form the same), and the claims of this level. The box is read again:
    //    kept over the search, it would cost the registers that the search needs.
    const AtssBox<float> box = box_of(image, number);
    const float threshold = iou_threshold(all, [&](int n) { return ious[n * boxes + slot]; });
    each<K>(topk, [&](int n) {
        if (n >= found) return;
        float x, y;
        place(list.name(n), x, y);
        const float iou = ious[(before + n) * boxes + slot];
        if (!is_positive(x, y, box, iou, threshold)) return;
        const std::int64_t point = level.first_point + index_of(level, list.name(n));
        atomic_max(reinterpret_cast<Claim*>(a.index) + (images.first + which) * a.points + point,
                   claim_of(iou, number));
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

unsigned grid_size(std::int64_t blocks, std::int64_t images) {
    if (blocks * images > INT32_MAX) throw std::length_error("atss: more than 2^31 blocks in one launch");
    return unsigned(blocks * images);
}

void assign(const AtssArguments& a, const Images& images, int count, void* stream) {
    const std::int64_t point_blocks = (a.points + point_threads - 1) / point_threads;
    launch(atss_clear, grid_size(point_blocks, count), point_threads, 0, stream, a, images, unsigned(point_blocks));
    std::int64_t most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, images.image[i].count);
    if (most > 0) {
        const int boxes = int(box_threads) / a.level_count;
        const std::int64_t blocks = (most + boxes - 1) / boxes;
        const bool usual = a.topk == 9;
        launch(usual ? atss_claim<9> : atss_claim<0>, grid_size(blocks, count), box_threads,
               shared_bytes(a, boxes, !usual), stream, a, images, unsigned(blocks), boxes);
    }
    launch(atss_finish, grid_size(point_blocks, count), point_threads, 0, stream, a, images, unsigned(point_blocks));
}

}  // namespace

void atss(const AtssArguments& a, Place place) {
    if (a.topk > max_topk) throw std::invalid_argument("topk: expected at most 32 on CUDA");
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
