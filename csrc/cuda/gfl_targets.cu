// `gfl_targets` on CUDA. The arithmetic is gflv2/gfl_targets.hpp's.
//
// The images' boxes travel by value, some images a launch: ragged boxes need no packing and no copy to the device. Sums
// are formed in two stages: a partial sum a block, then one block over them, the one that ends last, in an order that
// depends on the shapes alone.
//
// A thread takes a point. Nearly all points are negative, and only written; the threads of a block share out the rows of
// the positive ones, and a block without one ends there.

#include <algorithm>

#include "cuda/block_sum.cuh"
#include "cuda/dtypes.cuh"
#include "cuda/level_rows.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/gfl_targets.hpp"
#include "gflv2/integral.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

constexpr int images_per_launch = 16;  // all parameters of a kernel must fit into 4 KB

struct Images {
    std::int64_t first;  // index in the batch
    GflImage image[images_per_launch];
};

// The largest class logit of a point, of every fourth class from `first` on.
template <class C>
__device__ inline float largest_class(const Level& level, std::uint32_t image, std::int64_t offset, int first,
                                      int classes) {
    const C* at = static_cast<const C*>(level.logits) + image * level.strides.image + offset;
    float largest = -HUGE_VALF;
    for (int c = first; c < classes; c += 4) largest = maximum(float(widen(at[c * level.strides.bin])), largest);
    return largest;
}

__device__ inline float largest_class(const GflTargetsArguments& a, const Level& level, std::uint32_t image,
                                      std::int64_t offset, int first) {
    if (a.class_dtype == Dtype::float32) return largest_class<float>(level, image, offset, first, a.classes);
    if (a.class_dtype == Dtype::float16) return largest_class<half>(level, image, offset, first, a.classes);
    return largest_class<bfloat16>(level, image, offset, first, a.classes);
}

// Shared memory of a block: distances and classes, (4, threads) each, and the positive points.
constexpr unsigned shared_words = 8 * threads + 1 + threads;

// The second stage, in one block. A few threads an image, as many images at a time as that gives. `scratch`: (2, threads)
constexpr int image_threads = 8;
__device__ inline void write_sums(const GflTargetsArguments& a, std::uint32_t of_image, double* scratch) {
    constexpr int images = threads / image_threads;
    const int own = threadIdx.x / image_threads, lane = threadIdx.x % image_threads;
    double totals[2] = {};  // Σ max(1, positive points of an image), Σ weights
    for (std::int64_t first = 0; first < a.batch; first += images) {
        double positive = 0;
        if (first + own < a.batch) {
            const auto* const from = static_cast<const Partials<2>*>(a.workspace) + (first + own) * of_image;
            read_all<8>(lane, of_image, image_threads, [&](std::uint32_t i) { return from[i]; },
                        [&](const Partials<2>& found) {
                positive += found.value[0];
                totals[1] += found.value[1];
            });
        }
        __syncthreads();
        scratch[lane * (images + 1) + own] = positive;
        __syncthreads();
        if (threadIdx.x < images && first + threadIdx.x < a.batch) {
            positive = 0;
            for (int i = 0; i < image_threads; ++i) positive += scratch[i * (images + 1) + threadIdx.x];
            totals[0] += positive > 1.0 ? positive : 1.0;
        }
    }
    const double total = block_sums<threads>(totals, scratch);
    if (threadIdx.x < 2) static_cast<float*>(a.sums)[threadIdx.x] = float(total);
}

// Workspace: (images, blocks of an image, 2): positive points, Σ weights. `counter`: of the last launch of a call alone.
template <class T>
GFLV2_KERNEL(threads)
gfl_targets_kernel(GFLV2_CONSTANT GflTargetsArguments a, GFLV2_CONSTANT BlockTable blocks, GFLV2_CONSTANT Images images,
                   std::uint32_t* counter) {
    GFLV2_SHARED_MEMORY(float, shared);  // shared_words
    float* const distances = shared;     // (4, threads)
    float* const classes = shared + 4 * threads;

    // 1. The thread's point.
    Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, threads);
    const GflImage& image = images.image[chunk.image];
    chunk.image += std::uint32_t(images.first);
    const Level& level = a.levels.level[chunk.level];
    const BlockPoint at(chunk, level, a.points, threadIdx.x);
    const std::int64_t index = at.exists ? a.index[at.place] : 0;
    const Chosen positive(index > 0, reinterpret_cast<std::uint32_t*>(shared + 8 * threads));

    // 2. Of the positive points: the distance of a side, and the largest of a quarter of the classes.
    if (positive.count > 0) {
        const Level& class_level = a.class_levels.level[chunk.level];
        positive.each_side([&](std::uint32_t local, int side) {
            const BlockPoint of(chunk, level, a.points, local);
            distances[side * threads + local] =
                distance_of<0, float>(of.row_of<T>(level, chunk.image, side), a.bins, scale_of(a.scales, chunk.level),
                                      static_cast<const float*>(a.projection));
            classes[side * threads + local] =
                largest_class(a, class_level, chunk.image, of.offset_in(class_level.strides), side);
        });
        __syncthreads();
    }

    // 3. The thread has its point to itself.
    float weight = 0.0f;
    if (at.exists) {
        float box[4] = {}, score = 0.0f;
        std::int64_t label = -1;
        if (index > 0) {
            float cell[2], distance[4], pred[4], target[4];
            at.cell(float(a.offset), cell);
            float largest = classes[threadIdx.x];
            for (int i = 0; i < 4; ++i) {
                distance[i] = distances[i * threads + threadIdx.x];
                largest = maximum(classes[i * threads + threadIdx.x], largest);
            }
            box_of_distances(cell, distance, pred);
            // A box number that does not exist must not lead to a read out of bounds.
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
        const bool valid =
            at.row < std::uint32_t(image.rows[chunk.level]) && at.column < std::uint32_t(image.columns[chunk.level]);
        a.labels[at.place] = label;
        store_four(static_cast<float*>(a.boxes) + 4 * at.place, box);
        static_cast<float*>(a.scores)[at.place] = score;
        static_cast<float*>(a.weights)[at.place] = weight;
        static_cast<float*>(a.label_weights)[at.place] = valid && index >= 0 ? 1.0f : 0.0f;
    }

    // 4. The block's partial sums, and the sums of all. They lie image by image: the second stage counts each image's
    //    positive points.
    float sum = 0.0f;
    if (positive.count > 0) {
        const float values[2] = {index > 0 ? 1.0f : 0.0f, weight};
        sum = block_sums<threads>(values, shared);
    }
    std::uint32_t of_image = 0, before = 0;
    for (int l = 0; l < a.levels.count; ++l) {
        if (l < chunk.level) before += blocks.chunks[l];
        of_image += blocks.chunks[l];
    }
    if (threadIdx.x < 2) {
        float* const to = static_cast<float*>(a.workspace) +
                          2 * (std::int64_t(chunk.image) * of_image + before + chunk.first / threads);
        to[threadIdx.x] = sum;
    }
    if (ends_last(counter, shared)) write_sums(a, of_image, reinterpret_cast<double*>(shared));
}

// Where the last block has no counter to know itself by, or there is none.
GFLV2_KERNEL(threads) gfl_targets_sums(GFLV2_CONSTANT GflTargetsArguments a, std::uint32_t of_image) {
    GFLV2_SHARED_MEMORY(double, scratch);
    write_sums(a, of_image, scratch);
}

std::uint32_t blocks_of_image(const LevelTable& levels) { return block_table(levels, 1, threads).count; }

template <class T> void run(const GflTargetsArguments& a, void* stream) {
    std::uint32_t* const counter = a.batch * blocks_of_image(a.levels) > 0 ? launch_counter(stream) : nullptr;
    for (std::int64_t first = 0; first < a.batch; first += images_per_launch) {
        Images images{};
        images.first = first;
        const std::int64_t count = std::min<std::int64_t>(images_per_launch, a.batch - first);
        std::copy_n(a.images + first, count, images.image);
        const BlockTable blocks = block_table(a.levels, count, threads);
        if (blocks.count > 0)
            launch(gfl_targets_kernel<T>, blocks.count, threads, shared_words * sizeof(float), stream, a, blocks,
                   images, first + count == a.batch ? counter : nullptr);
    }
    if (!counter)
        launch(gfl_targets_sums, 1, threads, 2 * threads * sizeof(double), stream, a, blocks_of_image(a.levels));
}

}  // namespace

void gfl_targets(const GflTargetsArguments& a, Place place) {
    run_as("gfl_targets", a.dtype, place, [&](auto zero) { run<decltype(zero)>(a, place.stream); });
}

std::size_t gfl_targets_workspace(const LevelTable& levels, std::int64_t batch) {
    return 2 * std::size_t(blocks_of_image(levels)) * batch * sizeof(float);
}

}  // namespace gflv2::cuda
