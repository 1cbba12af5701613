// Twice each number. Broken: the last thread writes one element behind the output.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) twice(const float* from, float* to, unsigned count) {
    const unsigned i = blockIdx.x * threads + threadIdx.x;
#if defined(BROKEN)
    if (i <= count) to[i] = i < count ? 2 * from[i] : 0;
#else
    if (i < count) to[i] = 2 * from[i];
#endif
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads - 5);
    std::vector<float> found = unwritten(from.size()), expected;
    for (float value : from) expected.push_back(2 * value);
    return trial(found, expected, [&] {
        gflv2::launch(twice, blocks, threads, 0, nullptr, from.data(), found.data(), unsigned(from.size()));
    });
}
