// One block adds up what all of them have left. Broken: the block with the highest number, which need not end last.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) sum_of_all(const float* from, float* partial, float* to, std::uint32_t* counter) {
    if (threadIdx.x > 0) return;
    float sum = 0;
    for (unsigned i = 0; i < threads; ++i) sum += from[blockIdx.x * threads + i];
    partial[blockIdx.x] = sum;
#if defined(BROKEN)
    const bool last = blockIdx.x == gridDim.x - 1;
    static_cast<void>(counter);
#else
    const bool last = gflv2::arrives_last(counter);
#endif
    if (!last) return;
    sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += partial[block];
    to[0] = sum;
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads);
    std::vector<float> partial = unwritten(blocks), found = unwritten(1), expected(1, 0);
    for (const float value : from) expected[0] += value;
    std::uint32_t counter = 0;
    const int status = trial(found, expected, [&] {
        gflv2::launch(sum_of_all, blocks, threads, 0, nullptr, from.data(), partial.data(), found.data(), &counter);
    });
    return status + (counter == 0 ? 0 : 1);  // as the next launch finds it
}
