// Reads the factors of two products (gflv2/mma.hpp) from the standard input and writes the products: in the emulation
// by the twins, on a GPU by the tensor cores.
//
//   in    left (24, 16) of any numbers, right (24, 8); binary (16, 16) of 0 and 1, others (16, 8); all float32
//   out   leftᵀ·right (16, 8); binary·others (16, 8); binaryᵀ·others (16, 8)

#include <cstdio>
#include <vector>

#include "gflv2/mma.hpp"

namespace {

using namespace gflv2;

constexpr int steps = 3, pitch = 24, binary_pitch = 24;
constexpr int left_count = 24 * 16, right_count = 24 * 8, binary_count = 16 * 16, other_count = 16 * 8;
constexpr int in_count = left_count + right_count + binary_count + other_count, out_count = 3 * 16 * 8;

__device__ void store(const float (&sums)[4], float* out) {
    const int lane = threadIdx.x;
    for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

GFLV2_KERNEL(mma::lanes) apply(const float* in, float* out) {
    GFLV2_SHARED_MEMORY(float, memory);  // left (24, pitch), binary (16, binary_pitch) of 16 bits
    std::uint16_t* const bits = reinterpret_cast<std::uint16_t*>(memory + 24 * pitch);
    const float *const right = in + left_count, *const binary = right + right_count,
                       *const other = binary + binary_count;
    const int lane = threadIdx.x;
    for (int i = lane; i < left_count; i += mma::lanes) memory[i / 16 * pitch + i % 16] = in[i];
    for (int i = lane; i < 16 * 8; i += mma::lanes)
        *reinterpret_cast<std::uint32_t*>(bits + i / 8 * binary_pitch + i % 8 * 2) =
            mma::negative_pair(0.5f - binary[2 * i], 0.5f - binary[2 * i + 1]);
    __syncthreads();

    float sums[4] = {};
    mma::FloatFactor<steps>(memory, pitch).multiply(sums, [&](int step, int l) {
        const float* const at = right + (8 * step + l % 4) * 8 + l / 4;
        return mma::right_parts(at[0], at[4 * 8]);
    });
    store(sums, out);

    // Of the turned factor the rows keep their order: a thread has four in a row.
    const auto multiply = [&](const auto& left, int second, int stride, float* to) {
        float products[4] = {};
        for (int part = 2; part >= 0; --part)
            mma::multiply_bf16(products, left, [&](int l) {
                mma::Right words;
                for (int i = 0; i < 2; ++i) {
                    const float* const at = other + (l % 4 * stride + i * second) * 8 + l / 4;
                    words.word[i] = mma::three_parts(at[0], at[8]).word[part];
                }
                return words;
            });
        store(products, to);
    };
    multiply(mma::BinaryFactor<false>(bits, binary_pitch), 8, 2, out + 16 * 8);
    multiply(mma::BinaryFactor<true>(bits, binary_pitch), 2, 4, out + 2 * 16 * 8);
}

constexpr std::size_t shared_bytes = 24 * pitch * sizeof(float) + 16 * binary_pitch * sizeof(std::uint16_t);

#if defined(GFLV2_SIMT)
void on_device(const std::vector<float>& in, std::vector<float>& out) {
    launch(apply, 1, mma::lanes, shared_bytes, nullptr, in.data(), out.data());
}
#else
void on_device(const std::vector<float>& in, std::vector<float>& out) {
    float *from, *to;
    check_cuda(cudaMalloc(&from, in.size() * sizeof(float)), "allocating");
    check_cuda(cudaMalloc(&to, out.size() * sizeof(float)), "allocating");
    check_cuda(cudaMemcpy(from, in.data(), in.size() * sizeof(float), cudaMemcpyHostToDevice), "copying");
    launch(apply, 1, mma::lanes, shared_bytes, nullptr, static_cast<const float*>(from), to);
    check_cuda(cudaMemcpy(out.data(), to, out.size() * sizeof(float), cudaMemcpyDeviceToHost), "copying");
    cudaFree(from);
    cudaFree(to);
}
#endif

}  // namespace

int main() {
    std::vector<float> in(in_count), out(out_count);
    while (std::fread(in.data(), sizeof in[0], in.size(), stdin) == in.size()) {
        on_device(in, out);
        if (std::fwrite(out.data(), sizeof out[0], out.size(), stdout) != out.size()) return 1;
    }
    return 0;
}
