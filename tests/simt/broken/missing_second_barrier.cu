// Two passes over one scratch: each thread takes its neighbour's number, twice. Broken: the second pass may overwrite
// what the first has not read yet.

#include "trial.hpp"

namespace {

GFLV2_KERNEL(threads) turn(const float* from, float* to) {
    GFLV2_SHARED_MEMORY(float, scratch);
    float value = from[blockIdx.x * threads + threadIdx.x];
    for (int pass = 0; pass < 2; ++pass) {
        scratch[threadIdx.x] = value;
        __syncthreads();
        value = scratch[(threadIdx.x + 1) % threads];
#if !defined(BROKEN)
        __syncthreads();
#endif
    }
    to[blockIdx.x * threads + threadIdx.x] = value;
}

}  // namespace

int main() {
    const std::vector<float> from = numbers(blocks * threads);
    std::vector<float> found = unwritten(from.size()), expected(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) expected[i] = from[i / threads * threads + (i + 2) % threads];
    return trial(found, expected, [&] {
        gflv2::launch(turn, blocks, threads, threads * sizeof(float), nullptr, from.data(), found.data());
    });
}
