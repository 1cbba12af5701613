// Sums of pairs, read two at a time. Broken: from an address where a GPU cannot read two.

#include "trial.hpp"

namespace {

struct alignas(2 * sizeof(float)) Pair {
    float first, second;
};

GFLV2_KERNEL(threads) pairs(const float* from, float* to) {
    const Pair pair = *reinterpret_cast<const Pair*>(from + 2 * threadIdx.x);
    to[threadIdx.x] = pair.first + pair.second;
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(2 * threads + 2);
#if defined(BROKEN)
    constexpr unsigned skipped = 1;
#else
    constexpr unsigned skipped = 2;
#endif
    std::vector<float> found = unwritten(threads), expected(threads);
    for (unsigned i = 0; i < threads; ++i) expected[i] = from[2 * i + skipped] + from[2 * i + 1 + skipped];
    return trial(found, expected,
                 [&] { gflv2::launch(pairs, 1, threads, 0, nullptr, from.data() + skipped, found.data()); });
}
