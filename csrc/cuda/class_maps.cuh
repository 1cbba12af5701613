// A loss of every class of every point on CUDA, `qfl` and its kind: forward and backward, one pass over the score map
// each, all levels and images in one launch. What an element is, ELEMENTS says: QflElements (gflv2/qfl.hpp) or
// FocalElements (gflv2/focal.hpp).
//
// A block takes some points with all their classes. Its threads share them out in one of two ways:
//   points across the lanes   of a point's few threads, `parts`, thread w takes the classes w, w + parts, …: NCHW, correct
//                             for any strides; 16-bit scores are read two points at a time where the layout allows it
//   classes across the lanes  some 8 to 32 neighbouring threads take a point: channels_last and rows (N, C)
// What the classes of a point share is formed once a block. Each thread leaves the sum over its classes of a point in
// shared memory; one thread a point adds those up in their order.
//
// A thread takes some elements at a time. It computes all of them as small negatives, which nearly every element is
// (qfl.hpp), with no branch between them; only if one is none, it does them once more, each as what it is. An element
// has the same value either way.
#pragma once

#include "cuda/loss_reduction.cuh"
#include "cuda/points.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/qfl.hpp"
#include "gflv2/storage.hpp"

namespace gflv2::cuda {

constexpr unsigned warp = 32;
constexpr unsigned threads = 4 * warp;
constexpr unsigned fewest_points = warp;  // of a block

// Classes that a thread takes at a time (AT): it reads all of them before it computes the first. More of them share what
// a group costs; the joint form alone has the registers for them.
constexpr int at_a_time = 4, at_most = 8;

// How a block shares its work out: `parts` threads a point, so threads/parts points at a time (times PACK).
struct Sharing {
    bool classes_across_lanes;
    unsigned points, parts;

    // parts: a power of two
    GFLV2_HD unsigned pitch() const { return parts | 1; }  // odd, so that the lanes of a warp fall on different banks
    GFLV2_HD unsigned sums() const { return points * pitch() < threads ? threads : points * pitch(); }
    GFLV2_HD unsigned words() const { return 6 * points + sums(); }
};

// Two threads for the classes of two points, PACK = 2: what a thread does once a point, it does for more of them. Known
// when it is compiled, which spares divisions.
constexpr Sharing pairs_share{false, threads, 2};

// Blocks of a multiprocessor. From sm_100 on the compiler gives two points more registers than the 64 of a thread that
// eight blocks leave, and spills without them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <int PACK, int AT> constexpr int blocks_at_once = PACK == 1 ? 8 : AT == at_most ? 4 : 5;
#else
template <int PACK, int AT> constexpr int blocks_at_once = 8;
#endif

template <int PACK> GFLV2_HD Sharing sharing_of(const Sharing& given) { return PACK == 2 ? pairs_share : given; }

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
template <class ELEMENTS, bool BACKWARD>
__device__ inline void share_point(const typename ELEMENTS::Arguments& a, const Shared& shared, unsigned p,
                                   std::int64_t row) {
    Quality<float> quality{0.0f, 1.0f, 0.0f};
    if constexpr (ELEMENTS::form == QflForm::joint)
        quality = quality_of<float>(static_cast<const float*>(a.quality)[row]);
    shared.logit[p] = quality.logit;
    shared.score[p] = quality.score;
    shared.rest[p] = quality.rest;
    const std::int64_t label = a.labels ? a.labels[row] : -1;
    shared.label[p] = label >= 0 && label < a.classes ? int(label) : -1;
    if constexpr (BACKWARD) {
        const float upstream = upstream_of_row(a.reduction, row);
        shared.upstream[p] = upstream;
        // Where the elements of the labels are on their own, times the negatives' factor.
        if constexpr (ELEMENTS::own_labels) shared.upstream_over_score[p] = upstream * float(a.negative);
        else shared.upstream_over_score[p] = upstream / quality.score;
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

// What an element gives: its gradient (backward), and what it adds to the sum of its point, as a product.
struct Given {
    float gradient, added, times;

    __device__ void add_to(float& sum) const { sum = multiply_add(added, times, sum); }
};

// Is anything of a point's classes added up? A gradient has sums for the quality alone.
template <class ELEMENTS, bool BACKWARD> constexpr bool has_sums = !BACKWARD || ELEMENTS::form == QflForm::joint;

// As a small negative of a point that is near; it is one if `joint` is below small_score.
template <class ELEMENTS, bool BACKWARD>
__device__ inline Given small_negative(float value, const Point& point, float& joint) {
    const float odds = qfl_small_odds(value);
    if constexpr (BACKWARD) {
        const QflSmallGradients<float> parts =
            ELEMENTS::small_parts(odds, point.quality.score, point.quality.rest, point.upstream_over_score, joint);
        return {parts.value, parts.t, point.quality.rest};
    } else {
        joint = qfl_small_score(odds, point.quality.score);
        return {0.0f, small_loss(joint), ELEMENTS::small_factor(joint)};
    }
}

// Any element. target(): its y.
template <class ELEMENTS, bool BACKWARD, class Target>
__device__ inline Given element(float value, int c, const Point& point, const ELEMENTS& elements,
                                const Target& target) {
    // 1. The usual case.
    if constexpr (ELEMENTS::small) {
        if (point.near && c != point.label) {
            float joint;
            const Given given = small_negative<ELEMENTS, BACKWARD>(value, point, joint);
            if (joint < small_score<float>) return given;
        }
    }

    // 2. Any other.
    if constexpr (ELEMENTS::own_labels && !BACKWARD)
        if (c == point.label) return {0.0f, 0.0f, 0.0f};  // one thread of the point adds it: value_at_label
    const JointScore<float> j = joint_score<ELEMENTS::form, true, float>(value, point.quality);
    if constexpr (ELEMENTS::own_labels) {
        if (BACKWARD && c == point.label) return {elements.gradients(j, target()).value * point.upstream, 0.0f, 0.0f};
        if (BACKWARD) return {elements.negative_gradients(j).value * point.upstream_over_score, 0.0f, 0.0f};
        return {0.0f, elements.negative_value(j), 1.0f};
    } else {
        const float y = target();
        if constexpr (BACKWARD) {
            const QflGradients<float> gradients = y == 0.0f ? elements.negative_gradients(j) : elements.gradients(j, y);
            return {gradients.value * point.upstream, gradients.quality, 1.0f};
        } else {
            return {0.0f, y == 0.0f ? elements.negative_value(j) : elements.value(j, y), 1.0f};
        }
    }
}

// PACK neighbouring elements, of as many points, at `at` + offset[0], …
template <bool PAIRED, class T, int PACK>
__device__ inline void load_points(float (&value)[PACK], const T* at, const std::int64_t (&offset)[PACK]) {
    if constexpr (PAIRED) load_pair(at + offset[0], value[0], value[1]);
    else each<PACK>(PACK, [&](int k) { value[k] = widen(at[offset[k]]); });
}

// PAIRED: there are as many pairs as that, so both points of each exist.
template <bool PAIRED, class T, int PACK>
__device__ inline void store_points(const float (&gradient)[PACK], T* at, const std::int64_t (&offset)[PACK],
                                    const ThreadPoints<PACK>& place) {
    if constexpr (PAIRED) {
        store_pair(at + offset[0], gradient[0], gradient[1]);
    } else {
        each<PACK>(PACK, [&](int k) {
            if (place.valid[k]) at[offset[k]] = narrow<T>(gradient[k]);
        });
    }
}

// What a block's threads do their work on; all of it the same for every thread.
template <class T, class Arguments> struct Work {
    const Arguments& a;
    const Sharing& sharing;
    const Shared& shared;
    const Level& level;
    std::uint32_t first, points, count;  // the block's first point within the level, the level's points, the block's
    std::int64_t first_row;              // of the block, in (B, A)
    const T* scores;                     // of the image
    T* grad;                             // or null
};

// The thread's points, PACK at a time, and its classes of each. PAIRED: their elements are read and written in pairs.
template <bool PAIRED, class T, class ELEMENTS, bool BACKWARD, int PACK, int AT>
__device__ inline void go_through(const Work<T, typename ELEMENTS::Arguments>& work) {
    const typename ELEMENTS::Arguments& a = work.a;
    const ELEMENTS elements(a);
    const Sharing sharing = sharing_of<PACK>(work.sharing);
    const int parts = int(sharing.parts);
    const unsigned at_once = threads / parts;
    const int part = sharing.classes_across_lanes ? threadIdx.x % parts : threadIdx.x / at_once;
    const unsigned own = (sharing.classes_across_lanes ? threadIdx.x / parts : threadIdx.x % at_once) * PACK;
    const std::int64_t step = parts * work.level.strides.bin, grad_step = parts * work.level.grad_strides.bin;
    for (std::uint32_t p = own; p < work.count; p += at_once * PACK) {
        const ThreadPoints<PACK> place = place_of<PACK>(work.first + p, work.points);
        std::int64_t offset[PACK], grad_offset[PACK];
        each<PACK>(PACK, [&](int k) {
            offset[k] = PAIRED ? place.point[k] : point_offset(work.level, work.level.strides, place.point[k]);
            grad_offset[k] = PAIRED      ? place.point[k]
                             : work.grad ? point_offset(work.level, work.level.grad_strides, place.point[k])
                                         : 0;
        });
        Point point[PACK];
        bool near = true;
        int label[PACK];  // if it is one of the thread's classes, else far below all
        each<PACK>(PACK, [&](int k) {
            point[k].read(work.shared, p + (place.valid[k] ? k : 0), BACKWARD);
            near = near && point[k].near;
            label[k] =
                point[k].label >= 0 && ((point[k].label - part) & (parts - 1)) == 0 ? point[k].label : -(1 << 30);
        });
        float sum[PACK] = {};
        const T* at = work.scores + part * work.level.strides.bin;
        T* to = work.grad ? work.grad + part * work.level.grad_strides.bin : nullptr;

        // One class, each element as what it is.
        const auto any_element = [&](int i, int c, const float (&value)[PACK]) {
            float gradient[PACK];
            each<PACK>(PACK, [&](int k) {
                const std::int64_t row = work.first_row + p + k;
                const Given given = element<ELEMENTS, BACKWARD>(value[k], c, point[k], elements, [&] {
                    const float* target = static_cast<const float*>(a.scores);
                    if constexpr (ELEMENTS::dense)
                        if (!a.labels) return target[row * a.score_row + c * a.score_class];
                    if constexpr (ELEMENTS::own_labels) return target && place.valid[k] ? target[row] : 1.0f;
                    return c == point[k].label && place.valid[k] ? target[row] : 0.0f;
                });
                gradient[k] = given.gradient;
                if constexpr (has_sums<ELEMENTS, BACKWARD>) given.add_to(sum[k]);
            });
            if (BACKWARD && to) store_points<PAIRED>(gradient, to + i * grad_step, grad_offset, place);
        };

        for (int c = part; c < a.classes; c += AT * parts) {
            if constexpr (ELEMENTS::small) {
                bool usual = near && c + (AT - 1) * parts < a.classes;
                each<PACK>(PACK, [&](int k) { usual = usual && unsigned(label[k] - c) >= unsigned(AT * parts); });
                if (usual) {
                    float value[AT][PACK], gradient[AT][PACK], sums[PACK];
                    each<AT>(AT, [&](int i) { load_points<PAIRED>(value[i], at + i * step, offset); });
                    each<PACK>(PACK, [&](int k) { sums[k] = sum[k]; });
                    each<AT>(AT, [&](int i) {
                        each<PACK>(PACK, [&](int k) {
                            float joint;
                            const Given given = small_negative<ELEMENTS, BACKWARD>(value[i][k], point[k], joint);
                            gradient[i][k] = given.gradient;
                            if constexpr (has_sums<ELEMENTS, BACKWARD>) given.add_to(sums[k]);
                            usual = usual & (joint < small_score<float>);  // a NaN is not
                        });
                    });
                    if (usual) {
                        each<PACK>(PACK, [&](int k) { sum[k] = sums[k]; });
                        if (BACKWARD && to)
                            each<AT>(AT, [&](int i) {
                                store_points<PAIRED>(gradient[i], to + i * grad_step, grad_offset, place);
                            });
                    }
                }
                if (!usual) {
                    // The logits are read again, where an index known at run time would put them into local memory; one
                    // by one, which also tells this loop from the usual case in the machine code.
                    GFLV2_UNROLL_NEVER
                    for (int i = 0; i < AT && c + i * parts < a.classes; ++i) {
                        float value[PACK];
                        load_points<false>(value, at + i * step, offset);
                        any_element(i, c + i * parts, value);
                    }
                }
            } else {
                float value[AT][PACK];
                each<AT>(AT, [&](int i) {
                    load_points<PAIRED>(value[i], at + (c + i * parts < a.classes ? i : 0) * step, offset);
                });
                each<AT>(AT, [&](int i) {
                    if (c + i * parts < a.classes) any_element(i, c + i * parts, value[i]);
                });
            }
            at += AT * step;
            if (to) to += AT * grad_step;
        }
        if constexpr (has_sums<ELEMENTS, BACKWARD>)
            each<PACK>(PACK, [&](int k) {
                if (place.valid[k]) work.shared.sums[(p + k) * sharing.pitch() + part] = sum[k];
            });
    }
}

// The loss of the element of point p's label, 0 for background.
template <class ELEMENTS, class T>
__device__ inline float value_at_label(const Work<T, typename ELEMENTS::Arguments>& work, unsigned p) {
    const int label = work.shared.label[p];
    if (label < 0) return 0.0f;
    const float value = widen(
        work.scores[point_offset(work.level, work.level.strides, work.first + p) + label * work.level.strides.bin]);
    const float* scores = static_cast<const float*>(work.a.scores);
    const JointScore<float> j = joint_score<ELEMENTS::form, true, float>(value, Quality<float>{0.0f, 1.0f, 0.0f});
    return ELEMENTS(work.a).value(j, scores ? scores[work.first_row + p] : 1.0f);
}

// What a kernel does. PACK points a thread at a time; 1 with classes across the lanes. AT: see at_a_time. memory:
// sharing.words() words of shared memory, which is more than two a thread.
template <class T, class ELEMENTS, bool BACKWARD, int PACK, int AT>
__device__ inline void go_through_maps(const typename ELEMENTS::Arguments& a, const BlockTable& blocks,
                                       const Sharing& given, float* memory, std::uint32_t* counter) {
    const Sharing sharing = sharing_of<PACK>(given);
    const Shared shared(memory, sharing.points);

    // 1. The block's points, and what their classes share.
    const Chunk chunk = chunk_of(blocks, a.levels.count, blockIdx.x, sharing.points);
    const Level& level = a.levels.level[chunk.level];
    const std::uint32_t points = std::uint32_t(level.height * level.width), left = points - chunk.first;
    const std::uint32_t count = left < sharing.points ? left : sharing.points;
    const std::int64_t first_row = chunk.image * a.points + level.first_point + chunk.first;
    if (threadIdx.x < count) share_point<ELEMENTS, BACKWARD>(a, shared, threadIdx.x, first_row + threadIdx.x);
    __syncthreads();

    // 2. The thread's points, and its classes of each.
    const Work<T, typename ELEMENTS::Arguments> work{
        a,
        sharing,
        shared,
        level,
        chunk.first,
        points,
        count,
        first_row,
        static_cast<const T*>(level.logits) + chunk.image * level.strides.image,
        BACKWARD && a.grad_logits ? static_cast<T*>(level.grad_logits) + chunk.image * level.grad_strides.image
                                  : nullptr};
    const bool pairs = PACK == 2 && paired<T>(level, level.strides, level.logits) &&
                       (!work.grad || paired<T>(level, level.grad_strides, level.grad_logits));
    if (PACK == 2 && pairs) go_through<PACK == 2, T, ELEMENTS, BACKWARD, PACK, AT>(work);
    else go_through<false, T, ELEMENTS, BACKWARD, PACK, at_a_time>(work);

    // 3. Results of the points, one thread each.
    if constexpr (has_sums<ELEMENTS, BACKWARD>) {
        if constexpr (BACKWARD)
            if (!a.grad_quality) return;
        __syncthreads();
        float loss = 0;
        if (threadIdx.x < count) {
            float sum = 0;
            for (unsigned i = 0; i < sharing.parts; ++i) sum += shared.sums[threadIdx.x * sharing.pitch() + i];
            const std::int64_t row = first_row + threadIdx.x;
            if constexpr (ELEMENTS::own_labels)
                sum = sum * float(a.negative) + value_at_label<ELEMENTS>(work, threadIdx.x);
            if constexpr (BACKWARD) static_cast<float*>(a.grad_quality)[row] = sum * shared.upstream[threadIdx.x];
            else loss = reduced_row(a.reduction, row, sum);
        }
        if constexpr (!BACKWARD) total_over_blocks<threads>(a.reduction, a.workspace, loss, memory, counter);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

// Do neighbouring classes lie side by side, and neighbouring points not?
inline bool classes_adjacent(const LevelTable& levels, bool gradient) {
    bool points_apart = false;
    for (int l = 0; l < levels.count; ++l) {
        const Level& level = levels.level[l];
        if (level.strides.bin != 1 || (gradient && level.grad_strides.bin != 1)) return false;
        points_apart |= level.strides.x != 1 && level.width > 1;
    }
    return points_apart;
}

// Threads for the classes of a point: of 32, 16 and 8 the one that leaves the fewest idle; for fewer classes a power of
// two.
inline unsigned parts_for(unsigned classes) {
    unsigned best = warp;
    for (unsigned parts : {16u, 8u})
        if ((classes + parts - 1) / parts * parts < (classes + best - 1) / best * best) best = parts;
    while (best / 2 >= classes) best /= 2;
    return best;
}

// The sharing of a block: classes across the lanes, or points.
inline Sharing classes_share(unsigned classes) {
    const unsigned parts = parts_for(classes), at_once = threads / parts;
    return {true, at_once < fewest_points ? fewest_points : at_once, parts};
}
constexpr Sharing points_share{false, warp, threads / warp};

// Launches kernel(a, blocks, sharing, counter), and in forward sees to the total.
template <bool BACKWARD, class Kernel, class Arguments>
void start(const Kernel& kernel, const Arguments& a, const Sharing& sharing, void* stream) {
    const BlockTable blocks = block_table(a.levels, a.batch, sharing.points);
    const auto start_with = [&](std::uint32_t* counter) {
        launch(kernel, blocks.count, threads, sharing.words() * sizeof(float), stream, a, blocks, sharing, counter);
    };
    launch_loss<threads, BACKWARD>(a.reduction, a.workspace, blocks.count, stream, start_with);
}

// Bytes for the sums over blocks.
inline std::size_t workspace_of_maps(const LevelTable& levels, std::int64_t batch) {
    return total_workspace(block_table(levels, batch, fewest_points).count);
}

}  // namespace gflv2::cuda
