// A copy by way of shared memory. Broken: more of it than a launch may have.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) copy(const float* from, float* to) {
    GFLV2_SHARED_MEMORY(float, tile);
    tile[threadIdx.x] = from[threadIdx.x];
    __syncthreads();
    to[threadIdx.x] = tile[threadIdx.x];
}

}  // namespace

int main() {
#if defined(BROKEN)
    constexpr std::size_t room = 48 * 1024 + 4;
#else
    constexpr std::size_t room = 48 * 1024;
#endif
    const std::vector<float> from = numbers(threads);
    std::vector<float> found = unwritten(threads);
    return trial(found, from, [&] { gflv2::launch(copy, 1, threads, room, nullptr, from.data(), found.data()); });
}
