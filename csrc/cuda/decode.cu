// `decode` on CUDA: four launches for all levels of the whole batch. The arithmetic is gflv2/decode.hpp's and
// gflv2/integral.hpp's.
//
//   1. decode_keys    one pass over the class logits: the key of every point
//   2. decode_select  one block per image and level that has more than topk points: a radix selection of the keys, then
//                     a bitonic sort of the chosen ones in shared memory
//   3. decode_scores, decode_boxes    the rows of the result
// Every order is that of (key, index), which no two points share, so that the order in which threads arrive never
// shows.

#include "cuda/dtypes.cuh"
#include "cuda/level_rows.cuh"
#include "gflv2/api.hpp"
#include "gflv2/blocks.hpp"
#include "gflv2/decode.hpp"
#include "gflv2/integral.hpp"
#include "gflv2/launch.hpp"
#include "gflv2/points.hpp"

namespace gflv2::cuda {
namespace {

// A block takes `warp` points or rows.
constexpr unsigned slices = threads / warp;  // threads that share the classes of a point, or the sides of a row

__device__ inline float quality_of(const DecodeArguments& a, std::int64_t point) {
    return a.quality ? sigmoid(static_cast<const float*>(a.quality)[point]) : 1.0f;
}

__device__ inline std::int64_t first_row_of(const DecodeArguments& a, int l) {
    std::int64_t rows = 0;
    for (int m = 0; m < l; ++m) rows += rows_of(a.class_levels.level[m], a.topk);
    return rows;
}

// ---------------------------------------------------------------------------------------------------------------------
// 1. keys

// The largest of some of a point's logits that are numbers, and the same with a NaN if there is one among them: one
// instruction each, where a comparison and a mark take four.
struct Largest {
    float value, strict;

    __device__ void take(float logit) { take({logit, logit}); }
    __device__ void take(const Largest& other) {
        value = fmaxf(value, other.value);
        strict = larger(strict, other.strict);
    }
};

template <class T>
GFLV2_KERNEL(threads)
decode_keys(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(Largest, parts);  // (slices, warp)

    // 1. The block's points; neighbouring threads take what is adjacent in memory: points, or classes.
    const Chunk chunk = chunk_of(blocks, a.class_levels.count, blockIdx.x, warp);
    const Level& level = a.class_levels.level[chunk.level];
    const std::int64_t step = level.strides.bin;
    const unsigned local = step == 1 ? threadIdx.x / slices : threadIdx.x % warp;
    const unsigned slice = step == 1 ? threadIdx.x % slices : threadIdx.x / warp;
    const std::uint32_t points = std::uint32_t(level.height * level.width), left = points - chunk.first;
    if (blockIdx.x == 0)
        for (std::int64_t image = threadIdx.x; image < a.batch; image += threads) a.counts[image] = 0;

    // 2. The largest of every fourth class.
    if (local < left) {
        const T* at = static_cast<const T*>(level.logits) + chunk.image * level.strides.image +
                      point_offset(level, level.strides, chunk.first + local) + slice * step;
        Largest largest{-INFINITY, -INFINITY};
        int c = int(slice);
        constexpr int ahead = 8;  // loads under way
        for (; c + (ahead - 1) * int(slices) < a.classes; c += ahead * slices, at += ahead * slices * step) {
            float logits[ahead];
            each<ahead>(ahead, [&](int i) { logits[i] = widen(at[i * slices * step]); });
            each<ahead>(ahead, [&](int i) { largest.take(logits[i]); });
        }
        for (; c < a.classes; c += slices, at += slices * step) largest.take(widen(*at));
        parts[slice * warp + local] = largest;
    }
    __syncthreads();

    // 3. The largest of all, and the key.
    if (threadIdx.x < warp && threadIdx.x < left) {
        Largest largest = parts[threadIdx.x];
        for (unsigned s = 1; s < slices; ++s) largest.take(parts[s * warp + threadIdx.x]);
        const std::int64_t point = chunk.image * a.points + level.first_point + chunk.first + threadIdx.x;
        const float key = joint_key(largest.value, quality_of(a, point));
        static_cast<float*>(a.keys)[point] = largest.strict != largest.strict ? (key > 0.0f ? -key : -0.0f) : key;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// 2. selection

constexpr unsigned select_threads = 1024;
constexpr int digit_bits = 11;
constexpr unsigned digits = 1u << digit_bits;
constexpr unsigned bucket_group = 32;  // buckets that one thread adds up
static_assert(digits / bucket_group <= select_threads);

// Levels that have more than topk points.
struct Selecting {
    int count;
    int level[max_levels];
};

// Shared memory of a block, after the list that it sorts.
struct SelectState {
    std::uint32_t histogram[digits];
    std::uint32_t groups[digits / bucket_group];
    std::uint32_t word;   // what is known of the last word that is taken: its higher digits
    std::uint32_t left;   // how many words with those digits are taken
    std::uint32_t equal;  // how many there are
    std::uint32_t taken;
};

// The `left`-th largest of the words of those i < count for which word(i, w) is true: state.word, of which state.left
// of state.equal are among the largest.
template <class Word>
__device__ inline void radix_select(std::uint32_t count, std::uint32_t left, SelectState& state, const Word& word) {
    std::uint32_t last = 0, known = 0;
    for (int place = 32; place > 0;) {
        const int width = place < digit_bits ? place : digit_bits;
        const std::uint32_t mask = (1u << width) - 1;
        place -= width;

        // 1. How many words have each value of this digit?
        for (unsigned bucket = threadIdx.x; bucket < digits; bucket += select_threads) state.histogram[bucket] = 0;
        __syncthreads();
        for (std::uint32_t i = threadIdx.x; i < count; i += select_threads) {
            std::uint32_t w;
            if (word(i, w) && (w & known) == last) atomic_add(&state.histogram[w >> place & mask], 1u);
        }
        __syncthreads();
        if (threadIdx.x < digits / bucket_group) {
            std::uint32_t sum = 0;
            // Each thread begins elsewhere, so that they do not meet in one bank.
            for (unsigned i = 0; i < bucket_group; ++i)
                sum += state.histogram[threadIdx.x * bucket_group + (i + threadIdx.x) % bucket_group];
            state.groups[threadIdx.x] = sum;
        }
        __syncthreads();

        // 2. The value of the one that is looked for.
        if (threadIdx.x == 0) {
            int group = digits / bucket_group - 1;
            for (; state.groups[group] < left; --group) left -= state.groups[group];
            int bucket = (group + 1) * bucket_group - 1;
            for (; state.histogram[bucket] < left; --bucket) left -= state.histogram[bucket];
            state.word = last | std::uint32_t(bucket) << place;
            state.left = left;
            state.equal = state.histogram[bucket];
        }
        __syncthreads();
        last = state.word;
        left = state.left;
        known |= mask << place;
    }
}

// Shared: `places` words to sort, places a power of two ≥ topk, and the state.
GFLV2_KERNEL(select_threads)
decode_select(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT Selecting selecting, unsigned places) {
    GFLV2_SHARED_MEMORY(std::uint64_t, order);
    SelectState& state = *reinterpret_cast<SelectState*>(order + places);
    const std::int64_t image = blockIdx.x / selecting.count;
    const int l = selecting.level[blockIdx.x % selecting.count];
    const Level& level = a.class_levels.level[l];
    const std::uint32_t points = std::uint32_t(level.height * level.width), topk = std::uint32_t(a.topk);
    const float* const keys = static_cast<const float*>(a.keys) + image * a.points + level.first_point;

    // 1. The rank of the last point that is taken; where more points have it than are taken, the index of the last one.
    radix_select(points, topk, state, [&](std::uint32_t i, std::uint32_t& w) {
        w = rank_of(keys[i]);
        return true;
    });
    const std::uint32_t last = state.word;
    std::uint32_t last_index = 0;  // inverted, so that of equal ranks the lower index is the larger word
    if (state.left < state.equal) {
        const std::uint32_t left = state.left;
        __syncthreads();
        radix_select(points, left, state, [&](std::uint32_t i, std::uint32_t& w) {
            w = ~i;
            return rank_of(keys[i]) == last;
        });
        last_index = state.word;
    }

    // 2. The points that are taken, in any order; the rest of the places holds 0, below every word.
    if (threadIdx.x == 0) state.taken = 0;
    for (unsigned i = threadIdx.x; i < places; i += select_threads) order[i] = 0;
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; i < points; i += select_threads) {
        const std::uint32_t rank = rank_of(keys[i]);
        if (rank > last || (rank == last && ~i >= last_index))
            order[atomic_add(&state.taken, 1u)] = std::uint64_t(rank) << 32 | ~i;
    }

    // 3. Sorted, the largest first.
    for (unsigned run = 2; run <= places; run *= 2) {
        for (unsigned step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < places / 2; i += select_threads) {
                const unsigned low = i / step * 2 * step + i % step, high = low + step;
                const std::uint64_t x = order[low], y = order[high];
                if ((x < y) == ((low & run) == 0)) {
                    order[low] = y;
                    order[high] = x;
                }
            }
        }
    }
    __syncthreads();
    std::int64_t* const to = a.indices + image * a.rows + first_row_of(a, l);
    for (unsigned i = threadIdx.x; i < topk; i += select_threads) to[i] = level.first_point + std::uint32_t(~order[i]);
}

// ---------------------------------------------------------------------------------------------------------------------
// 3. rows

// A block takes up to `warp` rows of one level of one image.
struct BlockRows {
    Chunk chunk;
    std::int64_t first;  // of the block, in the result
    unsigned count;
    bool sorted;  // decode_select has written the indices; else row i of the level is its point i

    __device__ BlockRows(const DecodeArguments& a, const BlockTable& blocks)
        : chunk(chunk_of(blocks, a.class_levels.count, blockIdx.x, warp)) {
        const Level& level = a.class_levels.level[chunk.level];
        const std::int64_t rows = rows_of(level, a.topk);
        sorted = rows < level.height * level.width;
        first = chunk.image * a.rows + first_row_of(a, chunk.level) + chunk.first;
        count = unsigned(rows - chunk.first < warp ? rows - chunk.first : warp);
    }

    // Index within its level of the point of a row of the block.
    __device__ std::uint32_t point(const DecodeArguments& a, const Level& level, unsigned row) const {
        return sorted ? std::uint32_t(a.indices[first + row] - level.first_point) : chunk.first + row;
    }
};

// What the classes of a row share.
struct ScoreRow {
    std::int64_t offset;
    float key, quality;
    unsigned row;
};

// Shared memory: the rows above the threshold, and how many there are. No score of any other row is above it, and its
// logits are not read: nearly all rows are such.
struct ScoreRows {
    ScoreRow row[warp];
    std::uint32_t count;
};

template <class T>
GFLV2_KERNEL(threads)
decode_scores(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(ScoreRows, above);
    const BlockRows block(a, blocks);
    const Level& level = a.class_levels.level[block.chunk.level];
    const float threshold = float(a.score_threshold);
    const unsigned classes = unsigned(a.classes), count = block.count * classes;
    float* const to = static_cast<float*>(a.scores) + block.first * a.classes;

    // 1. Zeros, four at a time where the rows begin at a multiple of four.
    if (threadIdx.x == 0) above->count = 0;
    unsigned zeros = 0;
    if (reinterpret_cast<std::uintptr_t>(to) % sizeof(Four<float>) == 0) {
        zeros = count / 4;
        for (unsigned e = threadIdx.x; e < zeros; e += threads) reinterpret_cast<Four<float>*>(to)[e] = {};
    }
    for (unsigned e = 4 * zeros + threadIdx.x; e < count; e += threads) to[e] = 0.0f;
    __syncthreads();

    // 2. The rows above the threshold, in any order.
    if (threadIdx.x < block.count) {
        const std::uint32_t local = block.point(a, level, threadIdx.x);
        const std::int64_t point = block.chunk.image * a.points + level.first_point + local;
        const float signed_key = static_cast<const float*>(a.keys)[point],
                    key = signed_key < 0.0f ? -signed_key : signed_key;
        if (key > threshold)
            above->row[atomic_add(&above->count, std::uint32_t(1))] = {point_offset(level, level.strides, local), key,
                                                                       quality_of(a, point), threadIdx.x};
    }
    __syncthreads();
    const unsigned rows = above->count;
    if (rows == 0) return;
    if (threadIdx.x == 0)
        atomic_add(reinterpret_cast<unsigned long long*>(a.counts) + block.chunk.image, (unsigned long long)(rows));

    // 3. Their scores.
    const T* const logits = static_cast<const T*>(level.logits) + block.chunk.image * level.strides.image;
    for (unsigned e = threadIdx.x; e < rows * classes; e += threads) {
        const unsigned own = e / classes, c = e - own * classes;
        const ScoreRow& of = above->row[own];
        to[of.row * classes + c] =
            kept_score(widen(logits[of.offset + c * level.strides.bin]), of.quality, of.key, threshold);
    }
}

template <class T>
GFLV2_KERNEL(threads)
decode_boxes(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT BlockTable blocks) {
    const BlockRows block(a, blocks);
    const Level& level = a.box_levels.level[block.chunk.level];
    const unsigned local = threadIdx.x / slices;
    const int side = int(threadIdx.x % slices);
    if (local >= block.count) return;
    const std::uint32_t point = block.point(a, level, local), width = std::uint32_t(level.width), y = point / width;
    const std::int64_t image = block.chunk.image, row = block.first + local;

    // 1. Softmax and expectation.
    const float scale = a.scales ? static_cast<const float*>(a.scales)[block.chunk.level] : 1.0f;
    const MemoryRow<T> logits{static_cast<const T*>(level.logits) + image * level.strides.image +
                                  point_offset(level, level.strides, point) + side * level.strides.side,
                              level.strides.bin};
    NoExponentials none;
    const Softmax<float> softmax =
        softmax_moment<0, float>(logits, a.bins, scale, static_cast<const float*>(a.projection), none);

    // 2. The side of the box.
    const float stride = float(level.stride);
    float at = box_side(cell_point(side % 2 ? y : point - y * width, float(a.offset), stride),
                        softmax.moment / softmax.total, stride, side);
    if (a.image_sizes) at = clipped(at, static_cast<const float*>(a.image_sizes)[2 * image + 1 - side % 2]);
    if (a.scale_factors) at /= static_cast<const float*>(a.scale_factors)[2 * image + side % 2];
    static_cast<float*>(a.boxes)[4 * row + side] = at;
    if (!block.sorted && side == 0) a.indices[row] = level.first_point + point;

    // 3. The distribution, where it is wanted.
    if (!a.distributions) return;
    float* const to = static_cast<float*>(a.distributions) + (4 * row + side) * a.bins;
    const RecomputedExponentials<float> again;
    for (int b = 0; b < a.bins; ++b) to[b] = again.get(logits, b, scale, softmax.largest) / softmax.total;
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

// The blocks of the rows.
BlockTable row_blocks(const DecodeArguments& a) {
    LevelTable rows = a.class_levels;
    for (int l = 0; l < rows.count; ++l) {
        rows.level[l].width = rows_of(a.class_levels.level[l], a.topk);
        rows.level[l].height = 1;
    }
    return block_table(rows, a.batch, warp);
}

void select(const DecodeArguments& a, void* stream) {
    Selecting selecting{};
    for (int l = 0; l < a.class_levels.count; ++l) {
        const Level& level = a.class_levels.level[l];
        if (rows_of(level, a.topk) < level.height * level.width) selecting.level[selecting.count++] = l;
    }
    if (selecting.count == 0) return;
    if (a.topk > max_cuda_decode_topk)
        throw std::invalid_argument("decode: the CUDA kernels sort at most 4096 points of a level");
    unsigned places = 2;
    while (places < a.topk) places *= 2;
    launch(decode_select, unsigned(a.batch * selecting.count), select_threads,
           places * sizeof(std::uint64_t) + sizeof(SelectState), stream, a, selecting, places);
}

}  // namespace

void decode(const DecodeArguments& a, Place place) {
    if (a.batch * a.rows == 0) return;
    const BlockTable blocks = row_blocks(a);
    run_as("decode", a.class_dtype, place, [&](auto zero) {
        const BlockTable points = block_table(a.class_levels, a.batch, warp);
        launch(decode_keys<decltype(zero)>, points.count, threads, threads * sizeof(Largest), place.stream, a, points);
        select(a, place.stream);
        launch(decode_scores<decltype(zero)>, blocks.count, threads, sizeof(ScoreRows), place.stream, a, blocks);
    });
    run_as("decode", a.box_dtype, place,
           [&](auto zero) { launch(decode_boxes<decltype(zero)>, blocks.count, threads, 0, place.stream, a, blocks); });
}

}  // namespace gflv2::cuda
