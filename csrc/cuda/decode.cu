// `decode` on CUDA: four launches for all levels of the whole batch. The arithmetic is gflv2/decode.hpp's and
// gflv2/integral.hpp's.
//
//   1. decode_keys    one pass over the class logits: the key of every point
//   2. decode_select  one block per image and level that has more than topk points: a radix selection of the keys, then
//                     the chosen ones sorted in shared memory
//   3. decode_scores, decode_boxes    the rows of the result
// Every order is that of (key, index), which no two points share, so that the order in which threads arrive never
// shows.

#include "cuda/dtypes.cuh"
#include "cuda/level_rows.cuh"
#include "cuda/points.cuh"
#include "cuda/shared_counts.cuh"
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

// Of an image, level l gives the rows [first[l], first[l + 1]) of the result.
struct LevelRows {
    std::int64_t first[max_levels + 1];

    explicit LevelRows(const DecodeArguments& a) : first{} {
        for (int l = 0; l < a.class_levels.count; ++l)
            first[l + 1] = first[l] + rows_of(a.class_levels.level[l], a.topk);
    }
};

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

// Points of a thread: 16-bit logits are read two points at a time where the layout allows it.
template <class T> constexpr unsigned key_points = sizeof(T) == 2 ? 2 : 1;
constexpr int ahead = 10;  // loads under way

// The largest of every fourth class from `slice` on. take(classes past the first of these) → is told of each.
template <class Read, class Take>
__device__ inline void every_fourth(int slice, int classes, const Read& read, const Take& take) {
    const int count = (classes - slice + int(slices) - 1) / int(slices);
    for (int first = 0; first < count; first += ahead) {
        decltype(read(0)) found[ahead];
        // What is left over of a group: the last one again.
        if (first + ahead <= count) each<ahead>(ahead, [&](int i) { found[i] = read(first + i); });
        else each<ahead>(ahead, [&](int i) { found[i] = read(first + i < count ? first + i : count - 1); });
        each<ahead>(ahead, [&](int i) { take(found[i]); });
    }
}

// Of one point; `at`: its first logit.
template <class T> __device__ inline Largest largest_of(const T* at, std::int64_t step, int slice, int classes) {
    Largest largest{-INFINITY, -INFINITY};
    at += slice * step;
    every_fourth(slice, classes, [&](int i) { return widen(at[i * slices * step]); },
                 [&](float logit) { largest.take(logit); });
    return largest;
}

// Of two neighbouring points.
template <class T>
__device__ inline void largest_of_pair(const T* at, std::int64_t step, int slice, int classes, Largest (&largest)[2]) {
    std::uint32_t value = ptx::narrow_pair<T>(-INFINITY, -INFINITY), strict = value;
    at += slice * step;
    every_fourth(slice, classes, [&](int i) { return *reinterpret_cast<const std::uint32_t*>(at + i * slices * step); },
                 [&](std::uint32_t pair) {
        value = ptx::max_pair<T>(value, pair);
        strict = ptx::max_nan_pair<T>(strict, pair);
    });
    each<2>(2, [&](int k) {
        largest[k] = {widen(T{std::uint16_t(value >> 16 * k)}), widen(T{std::uint16_t(strict >> 16 * k)})};
    });
}

template <class T>
GFLV2_KERNEL(threads)
decode_keys(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT BlockTable blocks) {
    constexpr unsigned PACK = key_points<T>, points_of_block = PACK * warp;
    GFLV2_SHARED_MEMORY(Largest, parts);  // (slices, points of the block)

    // 1. The block's points; neighbouring threads take what is adjacent in memory: points, or classes.
    const Chunk chunk = chunk_of(blocks, a.class_levels.count, blockIdx.x, points_of_block);
    const Level& level = a.class_levels.level[chunk.level];
    const std::int64_t step = level.strides.bin;
    const unsigned lane = step == 1 ? threadIdx.x / slices : threadIdx.x % warp;
    const unsigned slice = step == 1 ? threadIdx.x % slices : threadIdx.x / warp;
    const std::uint32_t points = std::uint32_t(level.height * level.width), left = points - chunk.first;
    if (blockIdx.x == 0)
        for (std::int64_t image = threadIdx.x; image < a.batch; image += threads) a.counts[image] = 0;

    // 2. The largest of every fourth class.
    const T* const logits = static_cast<const T*>(level.logits) + chunk.image * level.strides.image;
    bool pairs = false;
    if constexpr (PACK == 2) pairs = paired<T>(level, level.strides, level.logits);
    if (pairs) {
        if constexpr (PACK == 2) {
            if (2 * lane < left) {
                Largest largest[2];
                largest_of_pair(logits + chunk.first + 2 * lane, step, int(slice), a.classes, largest);
                each<2>(2, [&](int k) { parts[slice * points_of_block + 2 * lane + k] = largest[k]; });
            }
        }
    } else {
        GFLV2_UNROLL_NEVER
        for (unsigned local = lane; local < points_of_block && local < left; local += warp)
            parts[slice * points_of_block + local] = largest_of(
                logits + point_offset(level, level.strides, chunk.first + local), step, int(slice), a.classes);
    }
    __syncthreads();

    // 3. The largest of all, and the key.
    if (threadIdx.x < points_of_block && threadIdx.x < left) {
        Largest largest = parts[threadIdx.x];
        for (unsigned s = 1; s < slices; ++s) largest.take(parts[s * points_of_block + threadIdx.x]);
        const std::int64_t point = chunk.image * a.points + level.first_point + chunk.first + threadIdx.x;
        const float key = joint_key(largest.value, quality_of(a, point));
        static_cast<float*>(a.keys)[point] = largest.strict != largest.strict ? (key > 0.0f ? -key : -0.0f) : key;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// 2. selection

constexpr unsigned select_threads = 512;
constexpr int digit_bits = 8;
constexpr unsigned digits = 1u << digit_bits;
constexpr unsigned digit_group = 16;
// Of each count, a lane its own: the first digits are alike, and lanes that meet at one place wait for each other.
constexpr unsigned copies = 8;
// Neighbouring words that are sorted together, first by counting, then by merging.
constexpr unsigned counted_run = 32, merged_run = 256;

// Levels that have more than topk points.
struct Selecting {
    int count;
    int level[max_levels];
};

// Shared memory of a block, after the list that it sorts.
struct SelectState {
    Four<std::uint32_t> histogram[digits * copies / 4];
    Four<std::uint32_t> totals[digits / 4];
    Four<std::uint32_t> groups[digit_group / 4];
    std::uint32_t elsewhere[select_threads];  // where a thread counts what does not count
    std::uint32_t digit;                      // found in this round
    std::uint32_t left, equal;                // as of Last
    std::uint32_t taken;

    __device__ void clear() {
        static_assert(digits * copies / 4 == select_threads);
        histogram[threadIdx.x] = {};
        if (threadIdx.x == 0) taken = 0;
    }
};

__device__ inline std::uint32_t sum_of(const Four<std::uint32_t>& four) {
    return four.value[0] + four.value[1] + four.value[2] + four.value[3];
}

// Σ of 16 numbers from the first-th on.
__device__ inline std::uint32_t sum_from(const Four<std::uint32_t>* numbers, int first) {
    std::uint32_t sum = 0;
    each<digit_group / 4>(0, [&](int i) {
        const Four<std::uint32_t> four = numbers[i];
        each<4>(4, [&](int k) { sum += 4 * i + k >= first ? four.value[k] : 0; });
    });
    return sum;
}

// f(keys, exists, place) with some of the block's keys, of which the k-th is keys[k] where exists(k), and place(k) its
// index. Four at a time where they are aligned so (FOURS), and the loads of some fours under way.
constexpr int fours = 9;
template <bool FOURS, class F> __device__ inline void each_key(const float* keys, std::uint32_t count, const F& f) {
    std::uint32_t from = 0;
    if (FOURS && reinterpret_cast<std::uintptr_t>(keys) % sizeof(Four<float>) == 0) {
        from = count / 4 * 4;
        constexpr unsigned step = 4 * select_threads;
        for (std::uint32_t first = 4 * threadIdx.x; first < from; first += fours * step) {
            float found[4 * fours];
            each<fours>(fours, [&](int i) {
                if (first + i * step >= from) return;
                const Four<float> four = *reinterpret_cast<const Four<float>*>(keys + first + i * step);
                each<4>(4, [&](int k) { found[4 * i + k] = four.value[k]; });
            });
            f(found, [&](int k) { return first + k / 4 * step < from; },
              [&](int k) { return first + k / 4 * step + k % 4; });
        }
    }
    GFLV2_UNROLL_NEVER
    for (std::uint32_t i = from + threadIdx.x; i < count; i += select_threads) {
        const float one[1] = {keys[i]};
        f(one, [](int) { return true; }, [&](int) { return i; });
    }
}

// Of the bits that are set: the place of the lowest one, and how many there are.
#if defined(GFLV2_SIMT)
inline int lowest_bit(std::uint64_t bits) { return __builtin_ctzll(bits); }
inline unsigned count_of(std::uint64_t bits) { return unsigned(__builtin_popcountll(bits)); }
#else
__device__ inline int lowest_bit(std::uint64_t bits) { return __ffsll(static_cast<long long>(bits)) - 1; }
__device__ inline unsigned count_of(std::uint64_t bits) { return unsigned(__popcll(bits)); }
#endif

template <int N, class F> __device__ inline void each_of(const float (&)[N], const F& f) { each<N>(N, f); }

// What tells the points that are taken: the higher digits of the last one's rank, and then of its index, inverted, so that
// of equal ranks the lower index is the larger number.
struct Last {
    std::uint32_t rank, known;
    std::uint32_t index, index_known;
    std::uint32_t left, equal;  // of the points that have these digits: how many are taken, how many there are

    __device__ bool same(std::uint32_t of) const { return (of & known) == rank; }
    __device__ bool same(std::uint32_t of, std::uint32_t i) const { return same(of) && (~i & index_known) == index; }
    __device__ bool by_rank() const { return index_known == 0; }  // no index tells more than the ranks do
    __device__ bool takes(std::uint32_t of) const { return (of & known) >= rank; }
    __device__ bool takes(std::uint32_t of, std::uint32_t i) const {
        return (of & known) > rank || (same(of) && (~i & index_known) >= index);
    }
};

// Digit by digit, until all of the points that have those so far are taken. The state is clear before and after.
__device__ inline Last radix_select(const float* keys, std::uint32_t count, std::uint32_t topk, SelectState& state) {
    Last last{0, 0, 0, 0, topk, count};
    for (int place = 64 - digit_bits; place >= 0 && last.left < last.equal; place -= digit_bits) {
        // 1. How many points have each value of this digit?
        const SharedAddress own = shared_address(state.histogram->value + threadIdx.x % copies),
                            elsewhere = shared_address(state.elsewhere + threadIdx.x);
        const bool of_rank = place >= 32;
        const int shift = place % 32;
        // A branch around it would cost more than a count that does not count.
        const auto count_if = [&](bool same, std::uint32_t word) {
            constexpr unsigned pitch = copies * sizeof(std::uint32_t);
            count_shared(same ? own + ptx::byte_of(word, shift / digit_bits) * pitch : elsewhere);
        };
        if (of_rank) {
            each_key<true>(keys, count, [&](const auto& key, const auto& exists, const auto&) {
                each_of(key, [&](int k) {
                    const std::uint32_t rank = rank_of(key[k]);
                    count_if(exists(k) & last.same(rank), rank);
                });
            });
        } else {
            each_key<false>(keys, count, [&](const auto& key, const auto&, const auto& at) {
                each_of(key, [&](int k) { count_if(last.same(rank_of(key[k]), at(k)), ~at(k)); });
            });
        }
        __syncthreads();
        std::uint32_t total = 0;
        if (threadIdx.x < digits) {
            Four<std::uint32_t>* const counts = state.histogram + threadIdx.x * (copies / 4);
            each<copies / 4>(0, [&](int i) {
                total += sum_of(counts[i]);
                counts[i] = {};
            });
            state.totals->value[threadIdx.x] = total;
        }
        __syncthreads();
        if (threadIdx.x < digit_group)
            state.groups->value[threadIdx.x] = sum_from(state.totals + threadIdx.x * (digit_group / 4), 0);
        __syncthreads();

        // 2. The value of the one that is looked for: with it enough are at least as large, without it not.
        if (threadIdx.x < digits) {
            const unsigned group = threadIdx.x / digit_group;
            const std::uint32_t above =
                sum_from(state.groups, int(group) + 1) +
                sum_from(state.totals + group * (digit_group / 4), int(threadIdx.x % digit_group) + 1);
            if (above < last.left && last.left <= above + total) {
                state.digit = threadIdx.x << shift;
                state.left = last.left - above;
                state.equal = total;
            }
        }
        __syncthreads();
        (of_rank ? last.rank : last.index) |= state.digit;
        (of_rank ? last.known : last.index_known) |= (digits - 1) << shift;
        last.left = state.left;
        last.equal = state.equal;
    }
    return last;
}

template <unsigned POWER_OF_TWO> constexpr int bits_of = 1 + bits_of<POWER_OF_TWO / 2>;
template <> constexpr int bits_of<1> = 0;

// How many of a run's words, the largest first, are above one.
template <unsigned RUN> __device__ inline unsigned count_above(const std::uint64_t* run, std::uint64_t word) {
    unsigned offset = 0;  // in bytes: no shift before each load
    const auto at = [&](unsigned step) {
        return *reinterpret_cast<const std::uint64_t*>(reinterpret_cast<const unsigned char*>(run) + offset +
                                                       step * sizeof(std::uint64_t));
    };
    each<bits_of<RUN>>(0, [&](int i) {
        constexpr unsigned half = RUN / 2;
        const unsigned step = half >> i;
        if (at(step - 1) > word) offset += step * sizeof(std::uint64_t);
    });
    return unsigned(offset / sizeof(std::uint64_t)) + (at(0) > word ? 1 : 0);
}

// The place of order[at] among the sorted runs order[first], …, order[end - 1], of which its own is one: behind what is
// above it.
template <unsigned RUN>
__device__ inline unsigned merged(const std::uint64_t* order, unsigned first, unsigned end, unsigned at) {
    const std::uint64_t word = order[at];
    unsigned place = at % RUN, run = at / RUN * RUN;
    GFLV2_UNROLL_NEVER
    for (unsigned others = (end - first) / RUN - 1; others > 0; --others) {
        run = run + RUN < end ? run + RUN : first;
        place += count_above<RUN>(order + run, word);
    }
    return place;
}

// Shared: `places` words to sort, places a multiple of merged_run, topk or more, and the state. EACH: words of a thread.
template <int EACH>
GFLV2_KERNEL(select_threads)
decode_select(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT LevelRows rows, GFLV2_CONSTANT Selecting selecting,
              unsigned places) {
    GFLV2_SHARED_MEMORY(std::uint64_t, order);
    SelectState& state = *reinterpret_cast<SelectState*>(order + places);
    const std::int64_t image = blockIdx.x / selecting.count;
    const int l = selecting.level[blockIdx.x % selecting.count];
    const Level& level = a.class_levels.level[l];
    const std::uint32_t points = std::uint32_t(level.height * level.width), topk = std::uint32_t(a.topk);
    const float* const keys = static_cast<const float*>(a.keys) + image * a.points + level.first_point;
    state.clear();
    for (unsigned i = topk + threadIdx.x; i < places; i += select_threads) order[i] = 0;  // below every word
    __syncthreads();

    // 1. The points that are taken, in any order.
    const Last last = radix_select(keys, points, topk, state);
    if (last.by_rank()) {
        each_key<true>(keys, points, [&](const auto& key, const auto& exists, const auto& place) {
            std::uint64_t taken = 0;
            each_of(key, [&](int k) { taken |= std::uint64_t(exists(k) & last.takes(rank_of(key[k]))) << k; });
            if (taken == 0) return;
            // Few: their keys are read again, where an index known at run time would put them into local memory.
            unsigned at = atomic_add(&state.taken, count_of(taken));
            for (; taken != 0; taken &= taken - 1) {
                const std::uint32_t i = place(lowest_bit(taken));
                order[at++] = std::uint64_t(rank_of(keys[i])) << 32 | ~i;
            }
        });
    } else {
        each_key<false>(keys, points, [&](const auto& key, const auto&, const auto& place) {
            each_of(key, [&](int k) {
                const std::uint32_t rank = rank_of(key[k]), i = place(k);
                if (last.takes(rank, i)) order[atomic_add(&state.taken, 1u)] = std::uint64_t(rank) << 32 | ~i;
            });
        });
    }
    __syncthreads();

    // 2. Sorted, the largest first: the place of each word in its run is how many of the run are above it.
    std::uint64_t own[EACH];
    unsigned to[EACH];
    const auto each_own = [&](const auto& f) {
        each<EACH>(EACH, [&](int k) {
            const unsigned at = k * select_threads + threadIdx.x;
            if (at < topk) f(k, at);
        });
    };
    const auto put_back = [&] {
        __syncthreads();
        each_own([&](int k, unsigned) { order[to[k]] = own[k]; });
        __syncthreads();
    };
    each_own([&](int k, unsigned at) {
        own[k] = order[at];
        to[k] = at / counted_run * counted_run;
        const Two<std::uint64_t>* const run = reinterpret_cast<const Two<std::uint64_t>*>(order + to[k]);
        each<counted_run / 2>(0, [&](int i) {
            const Two<std::uint64_t> two = run[i];
            to[k] += (two.value[0] > own[k] ? 1 : 0) + (two.value[1] > own[k] ? 1 : 0);
        });
    });
    put_back();
    each_own([&](int k, unsigned at) {
        own[k] = order[at];
        const unsigned first = at / merged_run * merged_run;
        to[k] = first + merged<counted_run>(order, first, first + merged_run, at);
    });
    put_back();
    std::int64_t* const indices = a.indices + image * a.rows + rows.first[l];
    each_own([&](int, unsigned at) {
        indices[merged<merged_run>(order, 0, places, at)] = level.first_point + std::uint32_t(~order[at]);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// 3. rows

// A block takes up to `warp` rows of one level of one image.
struct BlockRows {
    Chunk chunk;
    std::int64_t first;  // of the block, in the result
    unsigned count;
    bool sorted;  // decode_select has written the indices; else row i of the level is its point i

    __device__ BlockRows(const DecodeArguments& a, const LevelRows& of_levels, const BlockTable& blocks)
        : chunk(chunk_of(blocks, a.class_levels.count, blockIdx.x, warp)) {
        const Level& level = a.class_levels.level[chunk.level];
        const std::int64_t start = of_levels.first[chunk.level];
        const std::uint32_t rows = std::uint32_t(of_levels.first[chunk.level + 1] - start), left = rows - chunk.first;
        sorted = rows < std::uint32_t(level.height * level.width);
        first = chunk.image * a.rows + start + chunk.first;
        count = left < warp ? left : warp;
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
decode_scores(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT LevelRows of_levels, GFLV2_CONSTANT BlockTable blocks) {
    GFLV2_SHARED_MEMORY(ScoreRows, above);
    const BlockRows block(a, of_levels, blocks);
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

// A row whose logits are read once, where their number is known.
template <class T, int BINS> struct RowFor {
    float z[BINS];
    __device__ explicit RowFor(const MemoryRow<T>& row) {
        each<BINS>(0, [&](int b) { z[b] = row[b]; });
    }
    __device__ float operator[](int bin) const { return z[bin]; }
};
template <class T> struct RowFor<T, 0> : MemoryRow<T> {
    __device__ explicit RowFor(const MemoryRow<T>& row) : MemoryRow<T>(row) {}
};

template <class T, int BINS>
GFLV2_KERNEL(threads)
decode_boxes(GFLV2_CONSTANT DecodeArguments a, GFLV2_CONSTANT LevelRows of_levels, GFLV2_CONSTANT BlockTable blocks) {
    const BlockRows block(a, of_levels, blocks);
    const Level& level = a.box_levels.level[block.chunk.level];
    const unsigned local = threadIdx.x / slices;
    const int side = int(threadIdx.x % slices);
    if (local >= block.count) return;
    const std::uint32_t point = block.point(a, level, local), width = std::uint32_t(level.width);
    const std::uint32_t y = point / width, x = point - y * width;
    const std::int64_t image = block.chunk.image, row = block.first + local;

    // 1. Softmax and expectation.
    const float scale = scale_of(a.scales, block.chunk.level);
    const MemoryRow<T> memory{static_cast<const T*>(level.logits) + image * level.strides.image + y * level.strides.y +
                                  x * level.strides.x + side * level.strides.side,
                              level.strides.bin};
    const RowFor<T, BINS> logits(memory);
    NoExponentials none;
    const Softmax<float> softmax =
        softmax_moment<BINS, float>(logits, a.bins, scale, static_cast<const float*>(a.projection), none);

    // 2. The side of the box.
    const float stride = float(level.stride);
    float at =
        box_side(cell_point(side % 2 ? y : x, float(a.offset), stride), softmax.moment / softmax.total, stride, side);
    if (a.image_sizes) at = clipped(at, static_cast<const float*>(a.image_sizes)[2 * image + 1 - side % 2]);
    if (a.scale_factors) at /= static_cast<const float*>(a.scale_factors)[2 * image + side % 2];
    static_cast<float*>(a.boxes)[4 * row + side] = at;
    if (!block.sorted && side == 0) a.indices[row] = level.first_point + point;

    // 3. The distribution, where it is wanted.
    if (!a.distributions) return;
    float* const to = static_cast<float*>(a.distributions) + (4 * row + side) * a.bins;
    const RecomputedExponentials<float> again;
    for (int b = 0; b < a.bins; ++b) to[b] = again.get(memory, b, scale, softmax.largest) / softmax.total;
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

void select(const DecodeArguments& a, const LevelRows& rows, void* stream) {
    Selecting selecting{};
    for (int l = 0; l < a.class_levels.count; ++l) {
        const Level& level = a.class_levels.level[l];
        if (rows_of(level, a.topk) < level.height * level.width) selecting.level[selecting.count++] = l;
    }
    if (selecting.count == 0) return;
    if (a.topk > max_cuda_decode_topk)
        throw std::invalid_argument("decode: the CUDA kernels sort at most 4096 points of a level");
    const unsigned places = (unsigned(a.topk) + merged_run - 1) / merged_run * merged_run;
    launch(places <= 2 * select_threads ? decode_select<2> : decode_select<max_cuda_decode_topk / select_threads>,
           unsigned(a.batch * selecting.count), select_threads, places * sizeof(std::uint64_t) + sizeof(SelectState),
           stream, a, rows, selecting, places);
}

}  // namespace

void decode(const DecodeArguments& a, Place place) {
    if (a.batch * a.rows == 0) return;
    const BlockTable blocks = row_blocks(a);
    const LevelRows rows(a);
    run_as("decode", a.class_dtype, place, [&](auto zero) {
        using T = decltype(zero);
        constexpr unsigned points_of_block = key_points<T> * warp;
        const BlockTable points = block_table(a.class_levels, a.batch, points_of_block);
        launch(decode_keys<T>, points.count, threads, slices * points_of_block * sizeof(Largest), place.stream, a,
               points);
        select(a, rows, place.stream);
        launch(decode_scores<T>, blocks.count, threads, sizeof(ScoreRows), place.stream, a, rows, blocks);
    });
    run_as("decode", a.box_dtype, place, [&](auto zero) {
        with_bins(a.bins, [&](auto bins) {
            launch(decode_boxes<decltype(zero), decltype(bins)::value>, blocks.count, threads, 0, place.stream, a, rows,
                   blocks);
        });
    });
}

}  // namespace gflv2::cuda
