// `qfl` on CUDA: forward and backward, one pass over the score map each, all levels and images in one launch. The
// arithmetic is gflv2/qfl.hpp's, one element a time.
//
// A block takes some points with all their classes. Its threads share them out in one of two ways:
//   points across the lanes   warp w takes the classes w, w + 4, …: NCHW, correct for any strides; 16-bit scores are
//                             read two points at a time where the layout allows it
//   classes across the lanes  some 8 to 32 neighbouring threads take a point: channels_last and rows (N, C)
// What the classes of a point share is formed once a block. Each thread leaves the sum over its classes of a point in
// shared memory; one thread a point adds those up in their order.

#include "cuda/dtypes.cuh"
#include "cuda/loss_reduction.cuh"
#include "cuda/points.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/qfl.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {
namespace {

constexpr unsigned warp = 32;
constexpr unsigned threads = 4 * warp;
constexpr unsigned fewest_points = warp;  // of a block

// Classes that a thread reads before it computes the first of them.
constexpr int read_ahead = 4;

// How a block shares its work out: `parts` threads a point, so threads/parts points at a time (times PACK).
struct Sharing {
    bool classes_across_lanes;
    unsigned points, parts;

    GFLV2_HD unsigned pitch() const { return parts | 1; }  // odd, so that the lanes of a warp fall on different banks
    GFLV2_HD unsigned sums() const { return points * pitch() < threads ? threads : points * pitch(); }
    GFLV2_HD unsigned words() const { return 6 * points + sums(); }
};

// What the classes of a point share; one word a point for each of them, then the sums of the threads.
struct Shared {
    float *logit, *score, *rest;  // of the quality; without one the score is 1
    float *upstream, *upstream_over_score;
    int* label;   // −1: background
    float* sums;  // (points, pitch)

    __device__ Shared(float* memory, unsigned points)
        : logit(memory), score(memory + points), rest(memory + 2 * points), upstream(memory + 3 * points),
          upstream_over_score(memory + 4 * points), label(reinterpret_cast<int*>(memory + 5 * points)),
          sums(memory + 6 * points) {}
};

// Point `p` of the block, whose row is `row`.
template <QflForm FORM, bool BACKWARD>
__device__ inline void share_point(const QflArguments& a, const Shared& shared, unsigned p, std::int64_t row) {
    Quality<float> quality{0.0f, 1.0f, 0.0f};
    if constexpr (FORM == QflForm::joint) quality = quality_of<float>(static_cast<const float*>(a.quality)[row]);
    shared.logit[p] = quality.logit;
    shared.score[p] = quality.score;
    shared.rest[p] = quality.rest;
    const std::int64_t label = a.labels ? a.labels[row] : -1;
    shared.label[p] = label >= 0 && label < a.classes ? int(label) : -1;
    if constexpr (BACKWARD) {
        const float upstream = upstream_of_row(a.reduction, row);
        shared.upstream[p] = upstream;
        shared.upstream_over_score[p] = upstream / quality.score;
    }
}

// The same in registers of a thread that goes through the point's classes.
struct Point {
    Quality<float> quality;
    bool near;  // may its elements be small? See qfl.hpp.
    int label;
    float upstream, upstream_over_score;

    __device__ void read(const Shared& shared, unsigned p, bool backward) {
        quality = {shared.logit[p], shared.score[p], shared.rest[p]};
        near = quality.logit <= large_logit<float> && quality.logit >= -large_logit<float>;
        label = shared.label[p];
        upstream = backward ? shared.upstream[p] : 0.0f;
        upstream_over_score = backward ? shared.upstream_over_score[p] : 0.0f;
    }
};

// What an element gives: its gradient (backward), and what it adds to the sum of its point.
struct Given {
    float gradient, added;
};

// target(): y of the element.
template <QflForm FORM, bool SQUARE, bool BACKWARD, class Target>
__device__ inline Given element(float value, int c, const Point& point, const Modulation<float>& modulation,
                                const Target& target) {
    // 1. The usual case: a small negative of β = 2.
    if constexpr (SQUARE && FORM != QflForm::probabilities) {
        if (point.near && c != point.label) {
            const float odds = odds_against<float>(value);
            float joint;
            if constexpr (BACKWARD) {
                const QflGradients<float> gradients = qfl_small_gradients<FORM, float>(
                    odds, point.quality.score, point.quality.rest, point.upstream_over_score, joint);
                if (joint < small_score<float>) return {gradients.value, gradients.quality};
            } else {
                joint = qfl_small_score(odds, point.quality.score);
                if (joint < small_score<float>) return {0.0f, qfl_small_value(joint)};
            }
        }
    }

    // 2. Any other.
    const JointScore<float> j = joint_score<FORM, true, float>(value, point.quality);
    const float y = target();
    if constexpr (BACKWARD) {
        const QflGradients<float> gradients =
            y == 0.0f ? qfl_negative_gradients<FORM>(j, modulation) : qfl_gradients<FORM>(j, y, modulation);
        return {gradients.value * point.upstream, gradients.quality};
    } else {
        return {0.0f, y == 0.0f ? qfl_negative_value(j, modulation) : qfl_value(j, y, modulation)};
    }
}

// PACK neighbouring elements, of as many points, at `at` + offset[0], …
template <class T, int PACK>
__device__ inline void load_points(float (&value)[PACK], const T* at, const std::int64_t (&offset)[PACK], bool pairs) {
    if constexpr (PACK == 2) {
        if (pairs) return load_pair(at + offset[0], value[0], value[1]);
    }
    each<PACK>(PACK, [&](int k) { value[k] = widen(at[offset[k]]); });
}

template <class T, int PACK>
__device__ inline void store_points(const float (&gradient)[PACK], T* at, const std::int64_t (&offset)[PACK],
                                    const ThreadPoints<PACK>& place, bool pairs) {
    if constexpr (PACK == 2) {
        if (pairs) {
            if (place.valid[0]) store_pair(at + offset[0], gradient[0], gradient[1]);
            return;
        }
    }
    each<PACK>(PACK, [&](int k) {
        if (place.valid[k]) at[offset[k]] = narrow<T>(gradient[k]);
    });
}

// SQUARE: β is 2 and the target has labels. PACK points a thread at a time; 1 with classes across the lanes.
template <class T, QflForm FORM, bool SQUARE, bool BACKWARD, int PACK>
GFLV2_KERNEL(threads, 8)
qfl_points(GFLV2_CONSTANT QflArguments a, GFLV2_CONSTANT BlockTable blocks, GFLV2_CONSTANT Sharing sharing) {
    GFLV2_SHARED_MEMORY(float, memory);  // sharing.words()
    const Shared shared(memory, sharing.points);

    // 1. The block's points, and what their classes share.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, sharing.points);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t points = std::uint32_t(level.height * level.width), left = points - chunk.first;
    const std::uint32_t count = left < sharing.points ? left : sharing.points;
    const std::int64_t first_row = chunk.image * a.points + level.first_point + chunk.first;
    if (threadIdx.x < count) share_point<FORM, BACKWARD>(a, shared, threadIdx.x, first_row + threadIdx.x);
    __syncthreads();

    // 2. The thread's points, and its classes of each.
    const T* scores = static_cast<const T*>(level.logits) + chunk.image * level.strides.image;
    T* const grad = BACKWARD && a.grad_logits
                        ? static_cast<T*>(level.grad_logits) + chunk.image * level.grad_strides.image
                        : nullptr;
    const bool pairs = PACK == 2 && paired<T>(level, level.strides, level.logits);
    const bool grad_pairs = PACK == 2 && grad && paired<T>(level, level.grad_strides, level.grad_logits);
    const Modulation<float> modulation{SQUARE ? 2.0f : float(a.beta)};
    const unsigned parts = sharing.parts, at_once = threads / parts;
    const unsigned part = sharing.classes_across_lanes ? threadIdx.x % parts : threadIdx.x / at_once;
    const unsigned own = (sharing.classes_across_lanes ? threadIdx.x / parts : threadIdx.x % at_once) * PACK;
    for (std::uint32_t p = own; p < count; p += at_once * PACK) {
        const ThreadPoints<PACK> place = place_of<PACK>(chunk.first + p, points);
        std::int64_t offset[PACK], grad_offset[PACK];
        each<PACK>(PACK, [&](int k) {
            offset[k] = point_offset(level, level.strides, place.point[k]);
            grad_offset[k] = grad ? point_offset(level, level.grad_strides, place.point[k]) : 0;
        });
        Point point[PACK];
        each<PACK>(PACK, [&](int k) { point[k].read(shared, p + (place.valid[k] ? k : 0), BACKWARD); });
        float sum[PACK] = {};
        for (int first = part; first < a.classes; first += read_ahead * parts) {
            float value[read_ahead][PACK];
            each<read_ahead>(read_ahead, [&](int i) {
                const int c = first + i * int(parts);
                load_points<T, PACK>(value[i], scores + (c < a.classes ? c : first) * level.strides.bin, offset, pairs);
            });
            each<read_ahead>(read_ahead, [&](int i) {
                const int c = first + i * int(parts);
                if (c >= a.classes) return;
                float gradient[PACK];
                each<PACK>(PACK, [&](int k) {
                    const std::int64_t row = first_row + p + k;
                    const Given given = element<FORM, SQUARE, BACKWARD>(value[i][k], c, point[k], modulation, [&] {
                        const float* target = static_cast<const float*>(a.scores);
                        if (!SQUARE && !a.labels) return target[row * a.score_row + c * a.score_class];
                        return c == point[k].label && place.valid[k] ? target[row] : 0.0f;
                    });
                    gradient[k] = given.gradient;
                    sum[k] += given.added;
                });
                if (BACKWARD && grad)
                    store_points<T, PACK>(gradient, grad + c * level.grad_strides.bin, grad_offset, place, grad_pairs);
            });
        }
        each<PACK>(PACK, [&](int k) {
            if (place.valid[k]) shared.sums[(p + k) * sharing.pitch() + part] = sum[k];
        });
    }

    // 3. Results of the points, one thread each.
    if (BACKWARD && !a.grad_quality) return;
    __syncthreads();
    float loss = 0;
    if (threadIdx.x < count) {
        float sum = 0;
        for (unsigned i = 0; i < parts; ++i) sum += shared.sums[threadIdx.x * sharing.pitch() + i];
        const std::int64_t row = first_row + threadIdx.x;
        if constexpr (BACKWARD) static_cast<float*>(a.grad_quality)[row] = sum * shared.upstream[threadIdx.x];
        else loss = reduced_row(a.reduction, row, sum);
    }
    if constexpr (!BACKWARD) partial_total<threads>(a.reduction, a.workspace, loss, shared.sums);
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

// Do neighbouring classes lie side by side, and neighbouring points not?
bool classes_adjacent(const QflArguments& a, bool gradient) {
    bool points_apart = false;
    for (int l = 0; l < a.levels.count; ++l) {
        const Level& level = a.levels.level[l];
        if (level.strides.bin != 1 || (gradient && level.grad_strides.bin != 1)) return false;
        points_apart |= level.strides.x != 1 && level.width > 1;
    }
    return points_apart;
}

// Threads for the classes of a point: of 32, 16 and 8 the one that leaves the fewest idle; for fewer classes a power of
// two.
unsigned parts_for(unsigned classes) {
    unsigned best = warp;
    for (unsigned parts : {16u, 8u})
        if ((classes + parts - 1) / parts * parts < (classes + best - 1) / best * best) best = parts;
    while (best / 2 >= classes) best /= 2;
    return best;
}

template <class T, QflForm FORM, bool SQUARE, bool BACKWARD, int PACK>
void start(const QflArguments& a, const Sharing& sharing, void* stream) {
    const BlockTable blocks = block_table(a.levels, a.batch, sharing.points);
    if (blocks.count == 0) return;
    launch(qfl_points<T, FORM, SQUARE, BACKWARD, PACK>, blocks.count, threads, sharing.words() * sizeof(float), stream,
           a, blocks, sharing);
    if constexpr (!BACKWARD) launch_total(a.reduction, a.workspace, blocks.count, stream);
}

template <class T, QflForm FORM, bool BACKWARD> void run(const QflArguments& a, void* stream) {
    const bool square = a.beta == 2 && a.labels;
    if (classes_adjacent(a, BACKWARD && a.grad_logits)) {
        const unsigned parts = parts_for(a.classes), at_once = threads / parts;
        const Sharing sharing{true, at_once < fewest_points ? fewest_points : at_once, parts};
        return square ? start<T, FORM, true, BACKWARD, 1>(a, sharing, stream)
                      : start<T, FORM, false, BACKWARD, 1>(a, sharing, stream);
    }
    if constexpr (sizeof(T) == 2 && FORM != QflForm::probabilities)
        if (square) return start<T, FORM, true, BACKWARD, 2>(a, {false, 2 * warp, threads / warp}, stream);
    const Sharing sharing{false, warp, threads / warp};
    square ? start<T, FORM, true, BACKWARD, 1>(a, sharing, stream)
           : start<T, FORM, false, BACKWARD, 1>(a, sharing, stream);
}

template <class T, bool BACKWARD> void run(const QflArguments& a, void* stream) {
    switch (a.form) {
        case QflForm::logits: return run<T, QflForm::logits, BACKWARD>(a, stream);
        case QflForm::joint: return run<T, QflForm::joint, BACKWARD>(a, stream);
        case QflForm::probabilities: return run<T, QflForm::probabilities, BACKWARD>(a, stream);
    }
}

template <bool BACKWARD> void run(const QflArguments& a, Place place) {
    run_as("qfl", a.dtype, place, [&](auto zero) { run<decltype(zero), BACKWARD>(a, place.stream); });
}

}  // namespace

void qfl_forward(const QflArguments& a, Place place) { run<false>(a, place); }
void qfl_backward(const QflArguments& a, Place place) { run<true>(a, place); }

std::size_t qfl_workspace(const LevelTable& levels, std::int64_t batch) {
    return total_workspace(block_table(levels, batch, fewest_points).count);
}

}  // namespace gflv2::cuda
