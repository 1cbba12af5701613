// What csrc/include/gflv2/launch.hpp promises, on a CPU, for tests: under GFLV2_SIMT the .cu files compile with the
// host compiler, and their kernels run one block at a time with all its threads.
//
//   fibers.cpp    each thread is a fiber, and __syncthreads() hands over to the next one: fast, and the same every time
//   threads.cpp   each thread is one of the operating system's: for the thread sanitizer, which sees a missing barrier
//
// What a launch checks, and reports by throwing:
//   * sizes that CUDA refuses: no block, more than 1024 threads, more than 48 KB of shared memory, more than 4 KB of
//     parameters
//   * a barrier that not all threads of a block reach: some wait elsewhere, or have ended
//   * bytes on either side of the block's shared memory that were overwritten; the address sanitizer also sees a read
// Shared memory is full of NaN when a block begins. The order of the threads is reversed after each barrier, and that
// of the blocks from launch to launch: a result that depends on the order then shows.
//
// What it cannot show:
//   * a missing __syncwarp, or code that is right only while the threads of a warp run in step, or only while they do
//     not: there are no warps
//   * the order in which memory becomes visible to other blocks (fences): blocks run after each other. Only under the
//     thread sanitizer two of them run beside each other, which shows a write of both to one place.
//   * the device's own arithmetic: expf and division may differ in the last bits, and multiply_add() is not fused here.
//     The approximate instructions of gflv2/ptx.hpp have twins that are off by as much as they may be.
//   * anything about time, registers, or the coalescing of loads; a misaligned load shows under the undefined-behaviour
//     sanitizer alone
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline

#define GFLV2_KERNEL(...) void
#define GFLV2_CONSTANT const
#define GFLV2_SHARED_MEMORY(T, name) T* const name = reinterpret_cast<T*>(gflv2::simt::shared_memory())

namespace gflv2::simt {

struct Index {
    unsigned x, y, z;
};

// A launch with its kernel bound to its arguments: body(context) is one thread.
struct Launch {
    const char* text;  // as the source has it, for messages
    unsigned grid, block;
    std::size_t shared_bytes, parameter_bytes;
    void (*body)(const void*);
    const void* context;
};

void run(const Launch&);
unsigned char* shared_memory();
void wait(const char* file, int line);

}  // namespace gflv2::simt

// Each thread of the operating system has its own; a fiber's are set when its turn comes.
#define GFLV2_THREAD_LOCAL extern __thread __attribute__((tls_model("initial-exec")))
GFLV2_THREAD_LOCAL gflv2::simt::Index threadIdx, blockIdx, blockDim, gridDim;
#undef GFLV2_THREAD_LOCAL

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    gflv2::simt::wait(file, line);
}

namespace gflv2 {

template <class T> inline T atomic_load(const T* from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }

inline void atomic_max(long long* to, long long value) {
    long long before = atomic_load(to);
    while (before < value &&
           !__atomic_compare_exchange_n(to, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

template <class T> inline T atomic_add(T* to, T value) {
    static_assert(std::is_unsigned_v<T> && sizeof(T) >= 4);
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

// Every third launch has none, so that the tests meet both ways; their results have the same bits.
inline std::uint32_t* launch_counter(void*) {
    static std::uint32_t counter = 0, calls = 0;
    return atomic_add(&calls, std::uint32_t(1)) % 3 == 2 ? nullptr : &counter;
}

inline bool arrives_last(std::uint32_t* counter) {
    if (__atomic_fetch_add(counter, std::uint32_t(1), __ATOMIC_ACQ_REL) != gridDim.x - 1) return false;
    *counter = 0;
    return true;
}

class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        if (device != 0) throw std::invalid_argument("the emulation has one device, number 0");
    }
    ~DeviceGuard() {}
};

template <class... P, class... A>
void launch_as(const char* text, void (*kernel)(P...), unsigned grid, unsigned block, std::size_t shared_bytes, void*,
               A&&... args) {
    const std::tuple<std::decay_t<P>...> values(static_cast<std::decay_t<P>>(std::forward<A>(args))...);
    const auto thread = [&] { std::apply(kernel, values); };
    using Thread = decltype(thread);
    simt::run({text, grid, block, shared_bytes, (std::size_t(0) + ... + sizeof(P)),
               [](const void* context) { (*static_cast<Thread*>(context))(); }, &thread});
}

}  // namespace gflv2

// A macro, so that messages can name the kernel: its symbol, in an unnamed namespace, is not known at run time.
#define launch(...) launch_as(#__VA_ARGS__, __VA_ARGS__)
