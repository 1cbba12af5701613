// What lets one header serve the host compiler, the CUDA compiler, and the CPU code of every instruction set.
#pragma once

#if defined(__CUDACC__)
#define GFLV2_HD __host__ __device__ __forceinline__
// Before a loop that the compiler would unroll further than the registers allow.
#define GFLV2_UNROLL_TWICE _Pragma("unroll 2")
#define GFLV2_UNROLL_NEVER _Pragma("unroll 1")
#else
// The emulation (csrc/simt) is compiled more often than it runs: nothing is unrolled or forced inline there.
#if defined(GFLV2_SIMT)
#define GFLV2_HD inline
#else
#define GFLV2_HD inline __attribute__((always_inline))
#endif
#define GFLV2_UNROLL_TWICE
#define GFLV2_UNROLL_NEVER
#endif

// Code that runs on a GPU, or stands for it.
#if defined(__CUDA_ARCH__) || defined(GFLV2_SIMT)
#define GFLV2_ON_GPU 1
#else
#define GFLV2_ON_GPU 0
#endif

// The arithmetic is compiled once per instruction set. Each copy lives in a namespace of its own, else the linker would
// keep one of them for all, and a baseline processor could meet an AVX-512 instruction.
#if defined(GFLV2_ISA)
#define GFLV2_BEGIN   \
    namespace gflv2 { \
    inline namespace GFLV2_ISA {
#define GFLV2_END \
    }             \
    }
#else
#define GFLV2_BEGIN namespace gflv2 {
#define GFLV2_END }
#endif

GFLV2_BEGIN

// f(0), …, f(count − 1). N > 0 is the count as a constant: the loop is unrolled, so that an array indexed by its
// variable stays in registers. N = 0 takes the count at run time.
template <int N, class F> GFLV2_HD void each(int count, const F& f) {
    if constexpr (N > 0) {
#if defined(__CUDACC__)
#pragma unroll
#elif !defined(GFLV2_SIMT)
#pragma GCC unroll 65
#endif
        for (int i = 0; i < N; ++i) f(i);
    } else {
        for (int i = 0; i < count; ++i) f(i);
    }
}

// The same with a second argument, i modulo 4, which the compiler knows although it may not know the count: the index
// of one of four chains of sums.
constexpr int chains = 4;

template <int N, class F> GFLV2_HD void each_chained(int count, const F& f) {
    if constexpr (N > 0) {
        each<N>(N, [&](int i) { f(i, i % chains); });
    } else {
        int i = 0;
        for (; i + chains <= count; i += chains) each<chains>(chains, [&](int chain) { f(i + chain, chain); });
        each<chains - 1>(chains - 1, [&](int chain) {
            if (i + chain < count) f(i + chain, chain);
        });
    }
}

GFLV2_END
