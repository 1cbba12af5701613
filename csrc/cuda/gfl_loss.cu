// `gfl_targets` and the box losses of `gfl_loss` on CUDA. Lane = point, warp = side: few points are positive, and a warp without
// one leaves after reading 32 numbers. The arithmetic is gflv2/gfl_loss.hpp's.
//
// The images' boxes travel by value, some images a launch: ragged boxes need no packing and no copy to the device. Sums are
// formed in two stages: a partial sum a block, then one block over them, in an order that depends on the shapes alone.

#include <algorithm>

#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/gfl_loss.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

constexpr int images_per_launch = 16;  // all parameters of a kernel must fit into 4 KB

struct Images {
    std::int64_t first;  // index in the batch
    GflImage image[images_per_launch];
};

// What a thread knows of its point. Threads past the end have a point that does not exist.
struct ThreadPoint {
    std::uint32_t point, row, column;  // in the level
    std::int64_t place;                // in (B, A)
    bool exists;
    int side;

    __device__ ThreadPoint(const Chunk& chunk, const Level& level, std::int64_t points)
        : point(chunk.first + threadIdx.x % warp), row(point / std::uint32_t(level.width)), column(point - row * std::uint32_t(level.width)),
          place(chunk.image * points + level.first_point + point), exists(point < std::uint32_t(level.height * level.width)),
          side(threadIdx.x / warp) {}

    __device__ void cell(float offset, float* to) const {
        to[0] = float(column) + offset;
        to[1] = float(row) + offset;
    }

    __device__ std::int64_t offset_in(const Strides& s) const { return row * s.y + column * s.x; }

    template <class T> __device__ MemoryRow<T> row_of(const Level& level, std::uint32_t image) const {
        const T* at = static_cast<const T*>(level.logits) + image * level.strides.image + side * level.strides.side;
        return {at + offset_in(level.strides), level.strides.bin};
    }
};

__device__ inline float scale_of(const void* scales, int level) { return scales ? static_cast<const float*>(scales)[level] : 1.0f; }

// The largest class logit of a point, of every fourth class from `first` on.
template <class C> __device__ inline float largest_class(const Level& level, std::uint32_t image, std::int64_t offset, int first, int classes) {
    const C* at = static_cast<const C*>(level.logits) + image * level.strides.image + offset;
    float largest = -HUGE_VALF;
    for (int c = first; c < classes; c += 4) largest = maximum(float(widen(at[c * level.strides.bin])), largest);
    return largest;
}

__device__ inline float largest_class(const GflTargetsArguments& a, const Level& level, std::uint32_t image, std::int64_t offset, int first) {
    if (a.class_dtype == Dtype::float32) return largest_class<float>(level, image, offset, first, a.classes);
    if (a.class_dtype == Dtype::float16) return largest_class<half>(level, image, offset, first, a.classes);
    return largest_class<bfloat16>(level, image, offset, first, a.classes);
}

// Workspace: (images, blocks of an image, 2): positive points, Σ weights.
template <class T>
GFLV2_KERNEL(threads) gfl_targets_kernel(GFLV2_CONSTANT GflTargetsArguments a, GFLV2_CONSTANT BlockTable blocks, GFLV2_CONSTANT Images images) {
    GFLV2_SHARED_MEMORY(float, shared);  // (8, warp)
    float* const distances = shared;     // (4, warp)
    float* const classes = shared + 4 * warp;

    // 1. The thread's point and side.
    Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, warp);
    const GflImage& image = images.image[chunk.image];
    chunk.image += std::uint32_t(images.first);
    const Level& level = a.levels.level[chunk.level];
    const ThreadPoint at(chunk, level, a.points);
    const std::int64_t index = at.exists ? a.index[at.place] : 0;
    const int lane = threadIdx.x % warp;

    // 2. A positive point: the distance of the thread's side, and the largest of its quarter of the classes.
    if (index > 0) {
        const BoxSide<float> side = read_box_side<0, float>(at.row_of<T>(level, chunk.image), a.bins, scale_of(a.scales, chunk.level),
                                                            static_cast<const float*>(a.projection), 0.0f);
        distances[at.side * warp + lane] = side.distance;
        const Level& class_level = a.class_levels.level[chunk.level];
        classes[at.side * warp + lane] = largest_class(a, class_level, chunk.image, at.offset_in(class_level.strides), at.side);
    }
    __syncthreads();

    // 3. The first warp has the points to itself.
    float weight = 0.0f;
    const bool writes = at.side == 0 && at.exists;
    if (writes) {
        float box[4] = {}, score = 0.0f;
        std::int64_t label = -1;
        if (index > 0) {
            float cell[2], distance[4], pred[4], target[4];
            at.cell(float(a.offset), cell);
            float largest = classes[lane];
            for (int i = 0; i < 4; ++i) {
                distance[i] = distances[i * warp + lane];
                largest = maximum(classes[i * warp + lane], largest);
            }
            box_of_distances(cell, distance, pred);
            // A number that no box has must not read beyond them.
            const std::int64_t number = (index < image.count ? index : image.count) - 1;
            for (int i = 0; i < 4; ++i) {
                box[i] = number < 0 ? 0.0f : static_cast<const float*>(image.boxes)[4 * number + i];
                target[i] = box[i] / float(level.stride);
            }
            score = giou_value<false, float>(box_pair<float>(pred, target, smallest_area<float>));
            const float quality = a.quality ? static_cast<const float*>(a.quality)[at.place] : 0.0f;
            weight = joint_weight<float>(largest, a.quality != nullptr, quality);
            label = a.assigned[at.place];
        }
        const bool valid = at.row < std::uint32_t(image.rows[chunk.level]) && at.column < std::uint32_t(image.columns[chunk.level]);
        a.labels[at.place] = label;
        for (int i = 0; i < 4; ++i) static_cast<float*>(a.boxes)[4 * at.place + i] = box[i];
        static_cast<float*>(a.scores)[at.place] = score;
        static_cast<float*>(a.weights)[at.place] = weight;
        static_cast<float*>(a.label_weights)[at.place] = valid && index >= 0 ? 1.0f : 0.0f;
    }

    // 4. The block's partial sums. They lie image by image: the second stage counts each image's positive points.
    const float positive = block_sum<threads>(writes && index > 0 ? 1.0f : 0.0f, shared);
    weight = block_sum<threads>(weight, shared);
    if (threadIdx.x == 0) {
        std::uint32_t of_image = 0, before = 0;
        for (int l = 0; l < a.levels.count; ++l) {
            if (l < chunk.level) before += blocks.chunks[l];
            of_image += blocks.chunks[l];
        }
        float* const to = static_cast<float*>(a.workspace) + 2 * (std::int64_t(chunk.image) * of_image + before + chunk.first / warp);
        to[0] = positive;
        to[1] = weight;
    }
}

GFLV2_KERNEL(reduce_threads) gfl_targets_sums(const float* partial, std::int64_t batch, std::uint32_t of_image, float* sums) {
    GFLV2_SHARED_MEMORY(double, scratch);
    double number = 0, weight = 0;
    for (std::int64_t image = 0; image < batch; ++image) {
        double positive = 0;
        for (std::uint32_t i = threadIdx.x; i < of_image; i += reduce_threads) {
            const float* const from = partial + 2 * (image * of_image + i);
            positive += from[0];
            weight += from[1];
        }
        positive = block_sum<reduce_threads>(positive, scratch);
        number += positive > 1.0 ? positive : 1.0;
    }
    weight = block_sum<reduce_threads>(weight, scratch);
    if (threadIdx.x == 0) {
        sums[0] = float(number);
        sums[1] = float(weight);
    }
}

// Workspace: (blocks, 2): Σ weight·(1 − GIoU), Σ weight·DFL.
template <class T> GFLV2_KERNEL(threads) box_loss_kernel(GFLV2_CONSTANT BoxLossArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(float, shared);  // (4, warp)

    // 1. The thread's point and side, and the target of the side.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, warp);
    const Level& level = a.levels.level[chunk.level];
    const ThreadPoint at(chunk, level, a.points);
    const int lane = threadIdx.x % warp;
    const float weight = at.exists ? static_cast<const float*>(a.weights)[at.place] : 0.0f;
    const bool counts = weight > 0.0f;
    const float* const projection = static_cast<const float*>(a.projection);
    float cell[2], target[4] = {}, bin = 0.0f, slope = 0.0f, giou = 0.0f, dfl = 0.0f;
    at.cell(float(a.offset), cell);
    if (counts) {
        for (int i = 0; i < 4; ++i) target[i] = static_cast<const float*>(a.boxes)[4 * at.place + i] / float(level.stride);
        float own = target[0];
        for (int i = 1; i < 4; ++i) own = i == at.side ? target[i] : own;
        bin = target_bin<float>(at.side % 2 ? cell[1] : cell[0], own, at.side, projection[0], projection[1] - projection[0], a.bins);

        // 2. Its distance, and DFL.
        const BoxSide<float> side =
            read_box_side<0, float>(at.row_of<T>(level, chunk.image), a.bins, scale_of(a.scales, chunk.level), projection, bin);
        dfl = weight * side.dfl;
        shared[at.side * warp + lane] = side.distance;
    }
    __syncthreads();

    // 3. GIoU: every side forms that of its box, and takes its own slope.
    if (counts) {
        float distance[4], slopes[4];
        for (int i = 0; i < 4; ++i) distance[i] = shared[i * warp + lane];
        giou = weight * box_loss_of<float>(cell, distance, target, weight, slopes);
        slope = slopes[0];
        for (int i = 1; i < 4; ++i) slope = i == at.side ? slopes[i] : slope;
    }
    if (at.exists) {
        float* const to = static_cast<float*>(a.slopes) + 8 * at.place + 2 * at.side;
        to[0] = slope;
        to[1] = bin;
    }

    // 4. The block's partial sums.
    giou = block_sum<threads>(at.side == 0 ? giou : 0.0f, shared);
    dfl = block_sum<threads>(dfl, shared);
    if (threadIdx.x == 0) {
        static_cast<float*>(a.workspace)[2 * blockIdx.x] = giou;
        static_cast<float*>(a.workspace)[2 * blockIdx.x + 1] = dfl;
    }
}

GFLV2_KERNEL(reduce_threads) box_loss_sums(GFLV2_CONSTANT BoxLossArguments a, std::uint32_t blocks) {
    GFLV2_SHARED_MEMORY(double, scratch);
    const float* const partial = static_cast<const float*>(a.workspace);
    const double normaliser = double(*static_cast<const float*>(a.normaliser));
    for (int loss = 0; loss < 2; ++loss) {
        double sum = 0;
        for (std::uint32_t i = threadIdx.x; i < blocks; i += reduce_threads) sum += partial[2 * i + loss];
        sum = block_sum<reduce_threads>(sum, scratch);
        if (threadIdx.x == 0) static_cast<float*>(a.losses)[loss] = float(sum * a.factors[loss] / normaliser);
    }
}

std::uint32_t blocks_of_image(const LevelTable& levels) { return block_table(levels, 1, warp).count; }

template <class T> void run(const GflTargetsArguments& a, void* stream) {
    for (std::int64_t first = 0; first < a.batch; first += images_per_launch) {
        Images images{};
        images.first = first;
        const std::int64_t count = std::min<std::int64_t>(images_per_launch, a.batch - first);
        std::copy_n(a.images + first, count, images.image);
        const BlockTable blocks = block_table(a.levels, count, warp);
        if (blocks.count > 0) launch(gfl_targets_kernel<T>, blocks.count, threads, 8 * warp * sizeof(float), stream, a, blocks, images);
    }
    launch(gfl_targets_sums, 1, reduce_threads, reduce_threads * sizeof(double), stream, static_cast<const float*>(a.workspace), a.batch,
           blocks_of_image(a.levels), static_cast<float*>(a.sums));
}

template <class T> void run(const BoxLossArguments& a, void* stream) {
    const BlockTable blocks = block_table(a.levels, a.batch, warp);
    if (blocks.count > 0) launch(box_loss_kernel<T>, blocks.count, threads, threads * sizeof(float), stream, a, blocks);
    launch(box_loss_sums, 1, reduce_threads, reduce_threads * sizeof(double), stream, a, blocks.count);
}

template <class Arguments> void dispatch(const Arguments& a, Place place) {
    const DeviceGuard guard(place.device);
    switch (a.dtype) {
        case Dtype::float32: return run<float>(a, place.stream);
        case Dtype::float16: return run<half>(a, place.stream);
        case Dtype::bfloat16: return run<bfloat16>(a, place.stream);
        case Dtype::float64: break;
    }
    throw std::invalid_argument("gfl_loss: the CUDA kernels take float32, float16 and bfloat16");
}

}  // namespace

void gfl_targets(const GflTargetsArguments& a, Place place) { dispatch(a, place); }
void box_loss(const BoxLossArguments& a, Place place) { dispatch(a, place); }

std::size_t gfl_targets_workspace(const LevelTable& levels, std::int64_t batch) {
    return 2 * std::size_t(blocks_of_image(levels)) * batch * sizeof(float);
}
std::size_t box_loss_workspace(const LevelTable& levels, std::int64_t batch) {
    return 2 * std::size_t(block_table(levels, batch, warp).count) * sizeof(float);
}

}  // namespace gflv2::cuda
