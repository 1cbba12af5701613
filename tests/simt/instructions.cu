// Reads pairs of float32 from the standard input and writes, for each, what every function of gflv2/ptx.hpp makes of it
// (nine words): in the emulation the twins, on a GPU the instructions.

#include <cstdio>
#include <vector>

#include "gflv2/launch.hpp"
#include "gflv2/ptx.hpp"

namespace {

using namespace gflv2;

constexpr unsigned threads = 64, words = 12;

GFLV2_KERNEL(threads) apply(const float* pairs, unsigned count, std::uint32_t* out) {
    const unsigned i = blockIdx.x * threads + threadIdx.x;
    if (i >= count) return;
    const float a = pairs[2 * i], b = pairs[2 * i + 1];
    std::uint32_t* const to = out + words * i;
    to[0] = as_bits(ptx::max_nan(a, b));
    to[1] = as_bits(ptx::min_nan(a, b));
    to[2] = as_bits(ptx::exp2(a));
    to[3] = as_bits(ptx::quotient(a, b));
    to[4] = ptx::narrow_pair<bfloat16>(a, b);
    to[5] = ptx::narrow_pair<half>(a, b);
    to[6] = std::uint32_t(narrow<bfloat16>(a).bits) | std::uint32_t(narrow<half>(a).bits) << 16;
    to[7] = ptx::max_nan_pair<bfloat16>(ptx::narrow_pair<bfloat16>(a, b), ptx::narrow_pair<bfloat16>(b, -a));
    to[8] = ptx::max_nan_pair<half>(ptx::narrow_pair<half>(a, b), ptx::narrow_pair<half>(b, -a));
    to[9] = ptx::max_pair<bfloat16>(ptx::narrow_pair<bfloat16>(a, b), ptx::narrow_pair<bfloat16>(b, -a));
    to[10] = ptx::max_pair<half>(ptx::narrow_pair<half>(a, b), ptx::narrow_pair<half>(b, -a));
    to[11] = 0;
    for (int n = 0; n < 4; ++n) to[11] |= ptx::byte_of(as_bits(a), n) << 8 * (3 - n);
}

#if defined(GFLV2_SIMT)
void on_device(const std::vector<float>& pairs, std::vector<std::uint32_t>& out) {
    const unsigned count = unsigned(pairs.size() / 2);
    launch(apply, (count + threads - 1) / threads, threads, 0, nullptr, pairs.data(), count, out.data());
}
#else
void on_device(const std::vector<float>& pairs, std::vector<std::uint32_t>& out) {
    const unsigned count = unsigned(pairs.size() / 2);
    const std::size_t in_bytes = pairs.size() * sizeof(float), out_bytes = out.size() * sizeof(std::uint32_t);
    float* from;
    std::uint32_t* to;
    check_cuda(cudaMalloc(&from, in_bytes), "allocating");
    check_cuda(cudaMalloc(&to, out_bytes), "allocating");
    check_cuda(cudaMemcpy(from, pairs.data(), in_bytes, cudaMemcpyHostToDevice), "copying");
    launch(apply, (count + threads - 1) / threads, threads, 0, nullptr, static_cast<const float*>(from), count, to);
    check_cuda(cudaMemcpy(out.data(), to, out_bytes, cudaMemcpyDeviceToHost), "copying");
    cudaFree(from);
    cudaFree(to);
}
#endif

}  // namespace

int main() {
    std::vector<float> pairs;
    for (float pair[2]; std::fread(pair, sizeof pair, 1, stdin) == 1;) pairs.insert(pairs.end(), {pair[0], pair[1]});
    std::vector<std::uint32_t> out(pairs.size() / 2 * words);
    on_device(pairs, out);
    return std::fwrite(out.data(), sizeof out[0], out.size(), stdout) == out.size() ? 0 : 1;
}
