// How many numbers of a block are 3, counted in shared memory. Broken: the counter does not begin at 0.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) count(const float* from, float* to) {
    GFLV2_SHARED_MEMORY(unsigned, found);
#if !defined(BROKEN)
    if (threadIdx.x == 0) *found = 0;
#endif
    __syncthreads();
    if (from[blockIdx.x * threads + threadIdx.x] == 3) gflv2::atomic_add(found, 1u);
    __syncthreads();
    if (threadIdx.x == 0) to[blockIdx.x] = float(*found);
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads);
    std::vector<float> found = unwritten(blocks), expected(blocks);
    for (std::size_t i = 0; i < from.size(); ++i) expected[i / threads] += from[i] == 3;
    return trial(found, expected,
                 [&] { gflv2::launch(count, blocks, threads, sizeof(unsigned), nullptr, from.data(), found.data()); });
}
