// Each block writes the largest of its numbers, all 6. Broken: all to one place, which happens to give the right
// answer.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) largest(const float* from, float* to) {
    if (threadIdx.x > 0) return;
    float best = 0;
    for (unsigned i = 0; i < threads; ++i) {
        const float value = from[blockIdx.x * threads + i];
        best = value > best ? value : best;
    }
#if defined(BROKEN)
    for (unsigned block = 0; block < blocks; ++block) to[block] = best;
#else
    to[blockIdx.x] = best;
#endif
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads);
    std::vector<float> found = unwritten(blocks), expected(blocks, 6);
    return trial(found, expected,
                 [&] { gflv2::launch(largest, blocks, threads, 0, nullptr, from.data(), found.data()); });
}
