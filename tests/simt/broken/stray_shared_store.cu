// A block turns its numbers round by way of shared memory. Broken: they land one place too far.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) reverse(const float* from, float* to) {
    GFLV2_SHARED_MEMORY(float, tile);
#if defined(BROKEN)
    constexpr unsigned last = threads;
#else
    constexpr unsigned last = threads - 1;
#endif
    tile[last - threadIdx.x] = from[blockIdx.x * threads + threadIdx.x];
    __syncthreads();
    to[blockIdx.x * threads + threadIdx.x] = tile[threadIdx.x + last - (threads - 1)];
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads);
    std::vector<float> found = unwritten(from.size()), expected(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) expected[i] = from[i / threads * threads + threads - 1 - i % threads];
    return trial(found, expected, [&] {
        gflv2::launch(reverse, blocks, threads, threads * sizeof(float), nullptr, from.data(), found.data());
    });
}
