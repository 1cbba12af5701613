// What lets one header serve the host compiler, the CUDA compiler, and the CPU code of every instruction set.
#pragma once

#if defined(__CUDACC__)
#define GFLV2_HD __host__ __device__ __forceinline__
#else
#define GFLV2_HD inline __attribute__((always_inline))
#endif

// The arithmetic is compiled once per instruction set. Each copy lives in a namespace of its own, else the linker would
// keep one of them for all, and a baseline processor could meet an AVX-512 instruction.
#if defined(GFLV2_ISA)
#define GFLV2_BEGIN namespace gflv2 { inline namespace GFLV2_ISA {
#define GFLV2_END } }
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
#else
#pragma GCC unroll 65
#endif
        for (int i = 0; i < N; ++i) f(i);
    } else {
        for (int i = 0; i < count; ++i) f(i);
    }
}

GFLV2_END
