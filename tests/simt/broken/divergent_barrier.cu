// Every number plus the block's first. Broken: threads without a number leave before the barrier.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) shift(const float* from, float* to, unsigned count) {
    GFLV2_SHARED_MEMORY(float, first);
    const unsigned i = blockIdx.x * threads + threadIdx.x;
#if defined(BROKEN)
    if (i >= count) return;
#endif
    if (threadIdx.x == 0) *first = from[i];
    __syncthreads();
    if (i < count) to[i] = from[i] + *first;
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads - 5);
    std::vector<float> found = unwritten(from.size()), expected(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) expected[i] = from[i] + from[i / threads * threads];
    return trial(found, expected, [&] {
        gflv2::launch(shift, blocks, threads, sizeof(float), nullptr, from.data(), found.data(), unsigned(from.size()));
    });
}
