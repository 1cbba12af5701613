// Twice each number, four a thread. Broken: the rest of a number that four does not divide is left out.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) twice(const float* from, float* to, unsigned count) {
    const unsigned first = 4 * threadIdx.x;
    for (unsigned i = first; i < first + 4; ++i) {
#if defined(BROKEN)
        if (i < count / 4 * 4) to[i] = 2 * from[i];
#else
        if (i < count) to[i] = 2 * from[i];
#endif
    }
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(4 * threads - 1);
    std::vector<float> found = unwritten(from.size()), expected;
    for (float value : from) expected.push_back(2 * value);
    return trial(found, expected, [&] {
        gflv2::launch(twice, 1, threads, 0, nullptr, from.data(), found.data(), unsigned(from.size()));
    });
}
