// Sums over a block and over blocks. No float atomics: the order of every sum depends on the shapes alone, so the
// result has the same bits every time.
#pragma once

#include <cstdint>

#include "gflv2/launch.hpp"
#include "gflv2/macros.hpp"

namespace gflv2::cuda {

constexpr unsigned reduce_threads = 512;

// Sums of N values of each of the block's THREADS threads; that of value i is what thread i returns. `scratch` has
// N·THREADS places, free before and after. Two steps, so that four barriers are enough: `heads` threads a value add up
// every so many places, then one adds up theirs.
template <unsigned THREADS, int N, class S> __device__ inline S block_sums(const S (&values)[N], S* scratch) {
    constexpr unsigned heads = 16;
    static_assert(THREADS % heads == 0 && N * heads <= THREADS);
    __syncthreads();
    each<N>(N, [&](int i) { scratch[i * THREADS + threadIdx.x] = values[i]; });
    __syncthreads();
    if (threadIdx.x < N * heads) {
        S* const own = scratch + threadIdx.x / heads * THREADS + threadIdx.x % heads;
        S sum = own[0];
        for (unsigned place = heads; place < THREADS; place += heads) sum += own[place];
        own[0] = sum;
    }
    __syncthreads();
    S sum{};
    if (threadIdx.x < N)
        for (unsigned head = 0; head < heads; ++head) sum += scratch[threadIdx.x * THREADS + head];
    __syncthreads();
    return sum;
}

// Of one value: in thread 0.
template <unsigned THREADS, class S> __device__ inline S block_sum(S value, S* scratch) {
    const S values[1] = {value};
    return block_sums<THREADS>(values, scratch);
}

// Σ of what the thread's part of read(i), i < count, has: every `step`-th from `first` on. Some loads are on their way at
// a time: one waits as long as many.
template <int AT_A_TIME, class Read, class Add>
__device__ inline void read_all(std::uint32_t first, std::uint32_t count, std::uint32_t step, const Read& read,
                                const Add& add) {
    for (std::uint32_t i = first; i < count; i += AT_A_TIME * step) {
        decltype(read(i)) found[AT_A_TIME] = {};
        each<AT_A_TIME>(AT_A_TIME, [&](int k) {
            if (i + k * step < count) found[k] = read(i + k * step);
        });
        each<AT_A_TIME>(AT_A_TIME, [&](int k) { add(found[k]); });
    }
}

// Is this the block that ends last? The same for all its threads, which then see what every block has written. False
// without a counter. `scratch`: a word of shared memory, free before and after.
__device__ inline bool ends_last(std::uint32_t* counter, void* scratch) {
    if (counter == nullptr) return false;
    bool* const word = static_cast<bool*>(scratch);
    __syncthreads();
    if (threadIdx.x == 0) *word = arrives_last(counter);
    __syncthreads();
    const bool last = *word;
    __syncthreads();
    return last;
}

// Second stage, in one block: Σ partial[N·i + n] for i < count, in thread n. Few numbers, so double is affordable.
template <int N> struct alignas(N * sizeof(float)) Partials {
    float value[N];
};
template <int N, unsigned THREADS = reduce_threads>
__device__ inline double sums_of_partials(const float* partial, std::uint32_t count, double* scratch) {
    double sums[N] = {};
    read_all<8>(threadIdx.x, count, THREADS, [&](std::uint32_t i) {
        return reinterpret_cast<const Partials<N>*>(partial)[i];
    }, [&](const Partials<N>& found) { each<N>(N, [&](int n) { sums[n] += found.value[n]; }); });
    return block_sums<THREADS>(sums, scratch);
}

}  // namespace gflv2::cuda
