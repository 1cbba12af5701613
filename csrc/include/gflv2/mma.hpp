// Products of small matrices on a GPU's tensor cores, with the precision of float32, and the twin: the same for the
// emulation (csrc/simt) and for GPUs without these instructions. tests/simt/test_mma.py holds both to one bound.
//
// A warp multiplies a left factor of 16 rows by a right one of 8 columns. Each thread has a few elements of either
// factor, its fragment, and four sums: those of rows g and g + 8 and of columns 2t and 2t + 1, with g = lane/4, t =
// lane % 4. Factors are functions from a lane to its fragment: a GPU asks for the thread's own one, the twin, which
// knows no warps, for those of other lanes too. So they may read shared memory that all threads see, and nothing else.
//
//   tf32   8 columns times 8 rows; 11 bits of an element count. A float32 is the sum of two such numbers and of at most
//          one unit in its last place; three products (all but low·low) give a product of float32 numbers within three.
//   bf16   16 columns times 16 rows, two elements a word; 8 bits count. A float32 is the sum of three such numbers. Good
//          where the left factor is exact: 0 or 1.
#pragma once

#include <cmath>
#include <cstdint>

#include "gflv2/launch.hpp"
#include "gflv2/ptx.hpp"

namespace gflv2::mma {

constexpr int lanes = 32;

// Before the loop over the parts of a product: without tensor cores each is long enough.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define GFLV2_UNROLL_MMA _Pragma("unroll")
constexpr bool native = true;
#else
#define GFLV2_UNROLL_MMA GFLV2_UNROLL_NEVER
constexpr bool native = false;
#endif

// Elements (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4) of a left factor (row, column) as tf32; as bf16 words of the
// columns 2t and 2t + 1, the lower one first, then of 2t + 8 and 2t + 9.
struct Left {
    std::uint32_t word[4];
};
// Elements (t, g), (t + 4, g) of a right factor (row, column); as bf16 words of the rows 2t and 2t + 1, 2t + 8 and
// 2t + 9.
struct alignas(8) Right {
    std::uint32_t word[2];
};

// ---------------------------------------------------------------------------------------------------------------------
// float32 as a sum of shorter numbers

struct TwoParts {
    std::uint32_t high, low;
};

constexpr std::uint32_t kept = 0xffffe000u;

// As tf32, of a finite value; a NaN stays one.
GFLV2_HD TwoParts two_parts(float value) {
    const std::uint32_t high = (as_bits(value) + 0x1000u) & kept;  // a NaN may become 0: `low` is one
    return {high, as_bits(value - as_float(high)) & kept};
}

// The same of a right factor, which may be infinite. All of that is the low part: the high one of a finite left factor
// is 0 where the factor is 0, so that the products give what float32 would. (Its low part may be 0 anywhere.)
GFLV2_HD TwoParts two_parts_of_any(float value) {
    const TwoParts parts = two_parts(value);
    const bool beyond = (parts.high & 0x7fffffffu) == 0x7f800000u && value == value;
    return beyond ? TwoParts{0, as_bits(value) & kept} : parts;
}

struct ThreeParts {
    std::uint32_t word[3];
};

// Two numbers as bf16, `first` in the lower half of each word.
GFLV2_HD ThreeParts three_parts(float first, float second) {
    ThreeParts parts;
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int i = 0; i < 3; ++i) {
        const std::uint32_t both = ptx::narrow_pair<bfloat16>(first, second);
        parts.word[i] = both;
        first -= as_float(both << 16);
        second -= as_float(both & 0xffff0000u);
    }
    return parts;
}

// 1.0 in each half whose number is negative, as bf16; −0 counts as negative.
__device__ inline std::uint32_t negative_pair(float first, float second) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(as_bits(first), as_bits(second), 0xffbb) & 0x3f803f80u;
#else
    return (as_bits(first) >> 31) * 0x3f80u | (as_bits(second) >> 31) * 0x3f800000u;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// The products

#if !defined(__CUDA_ARCH__)
// One sum of the twin. Tensor cores align the terms at the largest one, cut off what lies more than a bit below its
// last place, add, and cut off once more.
template <int COUNT> inline float added(float sum, const float (&left)[COUNT], const float (&right)[COUNT]) {
    double terms[COUNT + 1], largest = std::fabs(double(sum)), total = double(sum);
    terms[COUNT] = double(sum);
    for (int k = 0; k < COUNT; ++k) {
        terms[k] = double(left[k]) * double(right[k]);
        largest = std::fmax(largest, std::fabs(terms[k]));
        total += terms[k];
    }
    if (!std::isfinite(total) || largest == 0) return float(total);
    const double unit = std::exp2(double(std::ilogb(largest) - 24)), units = 1 / unit;
    total = 0;
    for (double term : terms) total += std::trunc(term * units);
    const double exact = total * unit;
    const float rounded = float(exact);
    return std::fabs(double(rounded)) > std::fabs(exact) ? as_float(as_bits(rounded) - 1) : rounded;
}
#endif

// The numbers of a word: one as tf32, two as bf16.
template <int PER_WORD> GFLV2_HD float number(std::uint32_t word, int i) {
    if constexpr (PER_WORD == 1) return as_float(word);
    else return as_float(i ? word & 0xffff0000u : word << 16);
}

// sums += left · right, without tensor cores; PER_WORD elements a word.
template <int PER_WORD, class GetLeft, class GetRight>
__device__ inline void multiply_without(float (&sums)[4], int lane, const GetLeft& left, const GetRight& right) {
#if defined(__CUDA_ARCH__)
    GFLV2_UNROLL_NEVER
    for (int t = 0; t < 4; ++t) {
        const Left a = left(lane / 4 * 4 + t);
        each<2>(2, [&](int n) {
            const Right b = right((lane % 4 * 2 + n) * 4 + t);
            each<2>(2, [&](int row) {
                each<2 * PER_WORD>(0, [&](int k) {
                    const int word = k / PER_WORD, i = k % PER_WORD;
                    sums[2 * row + n] = fmaf(number<PER_WORD>(a.word[row + 2 * word], i),
                                             number<PER_WORD>(b.word[word], i), sums[2 * row + n]);
                });
            });
        });
    }
#else
    constexpr int count = 8 * PER_WORD, half = 4 * PER_WORD;
    float rows[2][count], columns[2][count];
    for (int t = 0; t < 4; ++t) {
        const Left a = left(lane / 4 * 4 + t);
        for (int n = 0; n < 2; ++n) {
            const Right b = right((lane % 4 * 2 + n) * 4 + t);
            for (int k = 0; k < 2 * PER_WORD; ++k) {
                const int word = k / PER_WORD, i = k % PER_WORD, place = word * half + PER_WORD * t + i;
                rows[n][place] = number<PER_WORD>(a.word[n + 2 * word], i);
                columns[n][place] = number<PER_WORD>(b.word[word], i);
            }
        }
    }
    for (int i = 0; i < 4; ++i) sums[i] = added(sums[i], rows[i / 2], columns[i % 2]);
#endif
}

// sums += left · right
template <class GetLeft, class GetRight>
__device__ inline void multiply_tf32(float (&sums)[4], const GetLeft& left, const GetRight& right) {
    const int lane = int(threadIdx.x) % lanes;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const Left a = left(lane);
    const Right b = right(lane);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
#else
    multiply_without<1>(sums, lane, left, right);
#endif
}

template <class GetLeft, class GetRight>
__device__ inline void multiply_bf16(float (&sums)[4], const GetLeft& left, const GetRight& right) {
    const int lane = int(threadIdx.x) % lanes;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const Left a = left(lane);
    const Right b = right(lane);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
#else
    multiply_without<2>(sums, lane, left, right);
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Left factors in shared memory

// 16 rows and 8·STEPS columns of float32, element (row, column) at from[column·pitch + row]. No bank is asked twice
// where pitch % 32 is 8 or 24.
template <int STEPS> class FloatFactor {
public:
    __device__ FloatFactor(const float* from, int pitch)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) read(from, pitch, step, threadIdx.x % lanes, high_[step], low_[step]);
    }
    __device__ Left high(int step, int) const { return high_[step]; }
    __device__ Left low(int step, int) const { return low_[step]; }
#else
        : from_(from), pitch_(pitch) {
    }
    __device__ Left high(int step, int lane) const {
        Left high, low;
        read(from_, pitch_, step, lane, high, low);
        return high;
    }
    __device__ Left low(int step, int lane) const {
        Left high, low;
        read(from_, pitch_, step, lane, high, low);
        return low;
    }
#endif

    // sums += this · right; right(step, lane): two fragments, `high` and `low`. Small terms first.
    template <class GetRight> __device__ void multiply(float (&sums)[4], const GetRight& right) const {
        GFLV2_UNROLL_MMA
        for (int step = 0; step < STEPS; ++step) {
            multiply_tf32(sums, [&](int lane) { return low(step, lane); },
                          [&](int lane) { return right(step, lane).high; });
            multiply_tf32(sums, [&](int lane) { return high(step, lane); },
                          [&](int lane) { return right(step, lane).low; });
        }
        GFLV2_UNROLL_MMA
        for (int step = 0; step < STEPS; ++step)
            multiply_tf32(sums, [&](int lane) { return high(step, lane); },
                          [&](int lane) { return right(step, lane).high; });
    }

private:
    __device__ static void read(const float* from, int pitch, int step, int lane, Left& high, Left& low) {
        each<4>(4, [&](int i) {
            const int row = lane / 4 + i % 2 * 8, column = 8 * step + lane % 4 + i / 2 * 4;
            const TwoParts parts = two_parts(from[column * pitch + row]);
            high.word[i] = parts.high;
            low.word[i] = parts.low;
        });
    }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    Left high_[STEPS], low_[STEPS];
#else
    const float* from_;
    int pitch_;
#endif
};

// Both parts of a right factor's fragment.
struct alignas(16) RightParts {
    Right high, low;
};

__device__ inline RightParts right_parts(float first, float second) {
    const TwoParts a = two_parts_of_any(first), b = two_parts_of_any(second);
    return {{{a.high, b.high}}, {{a.low, b.low}}};
}

// 16 rows and 16 columns of bf16, element (row, column) at from[row·pitch + column]; or, TURNED, at
// from[place(column)·pitch + row]. There place() has each thread's four columns side by side, and a right factor
// whose rows lie in their natural order gives the thread its fragment in one piece: rows 4t and 4t + 1, then 4t + 2
// and 4t + 3. `from` and the pitch are multiples of 16 bytes.
template <bool TURNED> class BinaryFactor {
public:
    __device__ BinaryFactor(const std::uint16_t* from, int pitch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        const int lane = threadIdx.x % lanes, matrix = lane / 8, line = lane % 8;
        const int row = TURNED ? line / 2 * 4 + line % 2 + matrix / 2 * 2 : line + matrix % 2 * 8;
        const int column = (TURNED ? matrix % 2 : matrix / 2) * 8;
        const unsigned at = unsigned(__cvta_generic_to_shared(from + row * pitch + column));
        if constexpr (TURNED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(own_.word[0]), "=r"(own_.word[1]), "=r"(own_.word[2]), "=r"(own_.word[3])
                         : "r"(at)
                         : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(own_.word[0]), "=r"(own_.word[1]), "=r"(own_.word[2]), "=r"(own_.word[3])
                         : "r"(at)
                         : "memory");
#else
        from_ = from;
        pitch_ = pitch;
#endif
    }

    __device__ Left operator()([[maybe_unused]] int lane) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        return own_;
#else
        Left all{};
        for (int i = 0; i < 8; ++i) {
            const int row = lane / 4 + i / 2 % 2 * 8, pair = lane % 4 * 2 + i % 2;  // of a half's eight columns
            const int place = TURNED ? lane % 4 * 4 + i % 2 + i / 4 * 2 : pair + i / 4 * 8;
            const std::uint32_t bits = TURNED ? from_[place * pitch_ + row] : from_[row * pitch_ + place];
            all.word[i / 2] |= bits << (i % 2 * 16);
        }
        return all;
#endif
    }

private:
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    Left own_;
#else
    const std::uint16_t* from_;
    int pitch_;
#endif
};

}  // namespace gflv2::mma
