// What the .cu files use of CUDA, and all of it: how kernels are declared and started, shared memory, the device and
// stream of a call. Under GFLV2_SIMT the same names come from csrc/simt, and the sources run on a CPU.
//
//   GFLV2_KERNEL(threads[, blocks])     before a kernel's signature: __global__, with its largest block, and how many
//                                       of them must fit on a multiprocessor
//   GFLV2_CONSTANT                      before a parameter passed by value and read in place (no copy on the stack)
//   GFLV2_SHARED_MEMORY(T, name)        the block's shared memory as a T*, of the size that launch() was given
//   gflv2::launch(kernel, grid, block, shared_bytes, stream, args…)
//   gflv2::atomic_max(to, value)       the larger of the two, for signed 64-bit integers (long long)
//   gflv2::atomic_load(from)           a word that other threads change meanwhile
//   gflv2::atomic_add(to, value)       the sum, for unsigned integers of 32 and 64 bits; returns what was there before
//   gflv2::launch_counter(stream)      a word for arrives_last(), 0 before and after a launch; null: there is none, and a
//                                      second launch must do what the last block of the first one would
//   gflv2::arrives_last(counter)       called by one thread of each block of a launch, after all of the block have
//                                      written: true for the last one, which then sees what every block wrote
//   gflv2::DeviceGuard guard(device)    makes the device current until the end of the scope
#pragma once

#if defined(GFLV2_SIMT)
#include "simt/launch.hpp"
#else

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#define GFLV2_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define GFLV2_CONSTANT const __grid_constant__
#define GFLV2_SHARED_MEMORY(T, name)                                     \
    extern __shared__ __align__(16) unsigned char gflv2_shared_memory[]; \
    T* const name = reinterpret_cast<T*>(gflv2_shared_memory)

namespace gflv2 {

#if defined(__CUDACC__)
__device__ inline void atomic_max(long long* to, long long value) { atomicMax(to, value); }
template <class T> __device__ inline T atomic_load(const T* from) { return *const_cast<const volatile T*>(from); }
template <class T> __device__ inline T atomic_add(T* to, T value) { return atomicAdd(to, value); }

__device__ inline bool arrives_last(std::uint32_t* counter) {
    __threadfence();
    if (atomicAdd(counter, 1u) != gridDim.x - 1) return false;
    *counter = 0;
    __threadfence();
    return true;
}
#endif

std::uint32_t* launch_counter(void* stream);  // of the current device; csrc/cuda/device.cu

// Throws with CUDA's own words; `what` names the step.
inline void check_cuda(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (" +
                                 cudaGetErrorName(status) + ")");
}

class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        check_cuda(cudaGetDevice(&before_), "reading the current CUDA device");
        if (before_ != device) check_cuda(cudaSetDevice(device), "choosing the CUDA device");
        changed_ = before_ != device;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

template <class... P, std::size_t... I>
void launch_packed(void (*kernel)(P...), unsigned grid, unsigned block, std::size_t shared_bytes, void* stream,
                   std::tuple<std::decay_t<P>...>& values, std::index_sequence<I...>) {
    void* pointers[] = {&std::get<I>(values)...};
    check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid), dim3(block), pointers, shared_bytes,
                                static_cast<cudaStream_t>(stream)),
               "launching a kernel");
}

template <class... P, class... A>
void launch(void (*kernel)(P...), unsigned grid, unsigned block, std::size_t shared_bytes, void* stream, A&&... args) {
    std::tuple<std::decay_t<P>...> values(static_cast<std::decay_t<P>>(std::forward<A>(args))...);
    launch_packed(kernel, grid, block, shared_bytes, stream, values, std::index_sequence_for<P...>{});
}

}  // namespace gflv2
#endif
