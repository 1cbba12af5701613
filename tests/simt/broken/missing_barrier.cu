// A block adds up its numbers in shared memory. Broken: the steps do not wait for each other.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) sum(const float* from, float* to) {
    GFLV2_SHARED_MEMORY(float, scratch);
    scratch[threadIdx.x] = from[blockIdx.x * threads + threadIdx.x];
    for (unsigned half = threads / 2; half > 0; half /= 2) {
#if !defined(BROKEN)
        __syncthreads();
#endif
        if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    }
    if (threadIdx.x == 0) to[blockIdx.x] = scratch[0];
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads);
    std::vector<float> found = unwritten(blocks), expected(blocks);
    for (std::size_t i = 0; i < from.size(); ++i) expected[i / threads] += from[i];
    return trial(found, expected, [&] {
        gflv2::launch(sum, blocks, threads, threads * sizeof(float), nullptr, from.data(), found.data());
    });
}
