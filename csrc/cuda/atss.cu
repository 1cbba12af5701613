// `atss` on CUDA. The arithmetic is gflv2/atss.hpp's; one thread owns one box on one level.
//
//   1. atss_claim    a block owns some boxes of one image, a thread one level of one of them: it finds the nearest
//                    points and their IoUs; with the IoUs of all levels in shared memory it forms the box's threshold,
//                    and writes its claims: the positive ones of its candidates.
//   2. atss_finish   a block owns some points of one level of one image. It goes through the claims of that level,
//                    keeps in shared memory the largest of each of its points, and writes index, IoU and label.
//   Before them, where there are ignore boxes alone: atss_ignored, every point: do they cover it?
//
// Of two claims of a point the one with the higher IoU wins, then the lower box: the largest of (IoU bits, inverted
// box) as one signed 64-bit integer, in whatever order they come.
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
constexpr unsigned points_a_thread = 4;  // of atss_finish: the claims are read once for all of a block's points
constexpr unsigned block_points = point_threads * points_a_thread;
constexpr unsigned box_threads = 128;
constexpr int images_per_launch = 24;  // all parameters of a kernel must fit into 4 KB
constexpr int max_topk = 32;           // bounds the shared memory of a block: 48 KB

// A candidate's claim in memory: (IoU bits, index of the point in its level), or none, whose point no level has.
using Claim = std::uint64_t;
constexpr Claim no_claim = ~Claim(0);
// The same at a point; −1: unclaimed.
using Best = long long;

__device__ inline Best best_of(Claim claim, std::uint32_t box) {
    return Best(claim & 0xffffffff00000000u) | (0x7fffffff - box);
}

struct Images {
    std::int64_t first;  // index in the batch of image[0]
    AtssImage image[images_per_launch];
    std::int64_t boxes_before[images_per_launch];  // of the batch
};

// The claims of a level of an image: (count, topk).
__device__ inline Claim* claims_of(const AtssArguments& a, const Images& images, unsigned which, int level) {
    const std::int64_t row = images.boxes_before[which] * a.level_count + level * images.image[which].count;
    return static_cast<Claim*>(a.workspace) + row * a.topk;
}

__device__ inline AtssBox<float> box_of(const AtssImage& image, std::uint32_t number) {
    const float* at = image.boxes + 4 * std::int64_t(number);
    return {at[0], at[1], at[2], at[3]};
}

// ---------------------------------------------------------------------------------------------------------------------
// Every point

GFLV2_KERNEL(point_threads)
atss_ignored(GFLV2_CONSTANT AtssArguments a, GFLV2_CONSTANT Images images, unsigned blocks) {
    const unsigned which = blockIdx.x / blocks;
    const std::int64_t point = std::int64_t(blockIdx.x - which * blocks) * point_threads + threadIdx.x;
    if (point >= a.points) return;
    const AtssImage& image = images.image[which];
    int l = 0;
    while (l + 1 < a.level_count && point >= a.level[l + 1].first_point) ++l;
    const AtssLevel& level = a.level[l];
    const int cell = int(point - level.first_point), row = cell / level.width, column = cell - row * level.width;
    a.ignored[(images.first + which) * a.points + point] =
        row < image.rows[l] && column < image.columns[l] && is_ignored(a, image, l, row, column);
}

// Blocks of the levels of an image: level l owns [first[l], first[l + 1]).
struct LevelBlocks {
    std::uint32_t first[max_levels + 1];
};

GFLV2_KERNEL(point_threads)
atss_finish(GFLV2_CONSTANT AtssArguments a, GFLV2_CONSTANT Images images, GFLV2_CONSTANT LevelBlocks blocks) {
    GFLV2_SHARED_MEMORY(Best, best);  // (block_points,)

    // 1. The block's points.
    const unsigned of_image = blocks.first[a.level_count], which = blockIdx.x / of_image;
    const unsigned block = blockIdx.x - which * of_image;
    int l = 0;
    while (l + 1 < a.level_count && block >= blocks.first[l + 1]) ++l;
    const AtssLevel& level = a.level[l];
    const std::uint32_t first = (block - blocks.first[l]) * block_points;
    const std::uint32_t all = std::uint32_t(level.height) * level.width - first;
    const std::uint32_t count = all < block_points ? all : block_points;
    const AtssImage& image = images.image[which];
    const std::uint32_t boxes = std::uint32_t(boxes_of(image)), topk = a.topk;
    each<points_a_thread>(points_a_thread, [&](int i) { best[i * point_threads + threadIdx.x] = -1; });
    __syncthreads();

    // 2. The largest claim of each.
    const Claim* const claims = claims_of(a, images, which, l);
    const std::int64_t end = std::int64_t(boxes) * topk;
    constexpr int ahead = 4;  // loads under way
    for (std::int64_t from = threadIdx.x; from < end; from += ahead * point_threads) {
        Claim found[ahead];
        each<ahead>(ahead, [&](int i) {
            const std::int64_t at = from + i * point_threads;
            found[i] = at < end ? claims[at] : no_claim;
        });
        each<ahead>(ahead, [&](int i) {
            const std::uint32_t place = std::uint32_t(found[i]) - first;
            if (place < count)
                atomic_max(best + place, best_of(found[i], std::uint32_t((from + i * point_threads) / topk)));
        });
    }
    __syncthreads();

    // 3. The result.
    each<points_a_thread>(points_a_thread, [&](int i) {
        const unsigned place = i * point_threads + threadIdx.x;
        if (place >= count) return;
        const std::int64_t at = (images.first + which) * a.points + level.first_point + first + place;
        const Best claim = best[place];
        std::int64_t index = 0, label = -1;
        float iou = boxes > 0 ? -1e8f : 0.0f;
        if (claim >= 0) {
            const std::int64_t box = 0x7fffffff - (claim & 0x7fffffff);
            index = box + 1;
            iou = as_float(std::uint32_t(claim >> 32));
            label = image.labels[box];
        } else if (a.ignoring && boxes > 0 && a.ignored[at]) {
            index = -1;
        }
        a.index[at] = index;
        a.iou[at] = iou;
        a.labels[at] = label;
    });
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

// Eight blocks a multiprocessor: left alone, ptxas aims at ten and spills for it. POINTS: the levels are lists of points,
// and no grids.
template <int K, bool POINTS>
GFLV2_KERNEL(box_threads, 8)
atss_claim(GFLV2_CONSTANT AtssArguments a, GFLV2_CONSTANT Images images, unsigned blocks, int boxes) {
    GFLV2_SHARED_MEMORY(float, ious);  // (L·topk, boxes), then the lists
    const int topk = K > 0 ? K : a.topk;

    // 1. The thread's image, level and box. Threads of a warp share a level, so that they take the same way.
    const unsigned which = blockIdx.x / blocks;
    const AtssImage& image = images.image[which];
    const int l = threadIdx.x / boxes, slot = threadIdx.x - l * boxes;
    const std::uint32_t number = (blockIdx.x - which * blocks) * boxes + slot;  // below 2^31 + 128
    const bool exists = l < a.level_count && number < boxes_of(image);
    AtssBox<float> box{};
    if (exists) box = box_of(image, number);
    // Candidates of the levels before this one, of this one, and of all.
    int before = 0, found = 0, all = 0;
    for (int m = 0; m < a.level_count; ++m) {
        const int cells = cells_of(a, image, m), of_level = topk < cells ? topk : cells;
        if (m < l) before += of_level;
        if (m == l) found = of_level;
        all += of_level;
    }
    // A box with a NaN has no positive point.
    const bool working = exists && box.complete() && found > 0 && all > 1;

    // 2. The nearest points of the level, and their IoUs.
    const AtssLevel& level = a.level[exists ? l : 0];
    NearestList<float, K> list = list_of<K>(ious + boxes * a.level_count * topk, topk);
    const auto place = [&](int name, float& x, float& y) {
        const AtssGrid grid{0, 0, level.stride, 0, a.offset};
        x = POINTS ? level.points[2 * std::int64_t(name)] : coordinate<float>(name & 0xffff, grid);
        y = POINTS ? level.points[2 * std::int64_t(name) + 1] : coordinate<float>(shifted_right(name, 16), grid);
    };
    if (working) {
        const std::uint8_t* ignored =
            a.ignoring ? a.ignored + (images.first + which) * a.points + level.first_point : nullptr;
        if constexpr (POINTS) {
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
    if (!exists) return;

    // 3. The threshold of the box (all its threads form the same), and the claims of this level.
    const float threshold = working ? iou_threshold(all, [&](int n) { return ious[n * boxes + slot]; }) : 0.0f;
    Claim* const to = claims_of(a, images, which, l) + std::int64_t(number) * topk;
    each<K>(topk, [&](int n) {
        Claim claim = no_claim;
        if (working && n < found) {
            float x, y;
            place(list.name(n), x, y);
            const float iou = ious[(before + n) * boxes + slot];
            if (is_positive(x, y, box, iou, threshold))
                claim = Claim(as_bits(iou)) << 32 | std::uint32_t(index_of(level, list.name(n)));
        }
        to[n] = claim;
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

unsigned grid_size(std::int64_t blocks, std::int64_t images) {
    if (blocks * images > INT32_MAX) throw std::length_error("atss: more than 2^31 blocks in one launch");
    return unsigned(blocks * images);
}

template <int K> void claim(const AtssArguments& a, const Images& images, int count, std::int64_t most, void* stream) {
    const int boxes = int(box_threads) / a.level_count;
    const std::int64_t blocks = (most + boxes - 1) / boxes;
    bool points = false;  // a list without a point has no address
    for (int l = 0; l < a.level_count; ++l) points |= a.level[l].points != nullptr;
    launch(points ? atss_claim<K, true> : atss_claim<K, false>, grid_size(blocks, count), box_threads,
           shared_bytes(a, boxes, K == 0), stream, a, images, unsigned(blocks), boxes);
}

void assign(const AtssArguments& a, const Images& images, int count, void* stream) {
    if (a.points == 0) return;
    if (a.ignoring) {
        const std::int64_t blocks = (a.points + point_threads - 1) / point_threads;
        launch(atss_ignored, grid_size(blocks, count), point_threads, 0, stream, a, images, unsigned(blocks));
    }
    std::int64_t most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, images.image[i].count);
    if (most > 0) a.topk == 9 ? claim<9>(a, images, count, most, stream) : claim<0>(a, images, count, most, stream);
    LevelBlocks blocks{};
    for (int l = 0; l < a.level_count; ++l) {
        const std::int64_t points = std::int64_t(a.level[l].height) * a.level[l].width;
        blocks.first[l + 1] = blocks.first[l] + std::uint32_t((points + block_points - 1) / block_points);
    }
    launch(atss_finish, grid_size(blocks.first[a.level_count], count), point_threads, block_points * sizeof(Best),
           stream, a, images, blocks);
}

}  // namespace

void atss(const AtssArguments& a, Place place) {
    if (a.topk > max_topk) throw std::invalid_argument("topk: expected at most 32 on CUDA");
    const DeviceGuard guard(place.device);
    std::int64_t before = 0;
    for (std::int64_t first = 0; first < a.batch; first += images_per_launch) {
        Images images{};
        images.first = first;
        const int count = int(std::min<std::int64_t>(images_per_launch, a.batch - first));
        std::copy_n(a.images + first, count, images.image);
        for (int i = 0; i < count; ++i) {
            images.boxes_before[i] = before;
            before += images.image[i].count;
        }
        assign(a, images, count, place.stream);
    }
}

std::size_t atss_workspace(const AtssArguments& a) {
    std::size_t boxes = 0;
    for (std::int64_t i = 0; i < a.batch; ++i) boxes += std::size_t(a.images[i].count);
    return boxes * a.level_count * a.topk * sizeof(Claim);
}

}  // namespace gflv2::cuda
