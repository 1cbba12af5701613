// Of a device: can the kernels run there, which is asked before the first call, so that a refusal has words; and the
// words by which the blocks of a launch know who ends last.

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "gflv2/api.hpp"
#include "gflv2/launch.hpp"

namespace gflv2::cuda {
namespace {

__global__ void probe() {}

// All are 0; the last block of a launch puts its own back. A launch has a word to itself while it runs:
//   * the launches of a stream run one after the other, and share one
//   * a launch that is captured may run beside others of the stream it was captured in, whenever its graph does: it has
//     one that no other gets. The launches of one graph are not run twice at a time.
// Where they are used up, launch_counter() has none to give.
constexpr std::uint32_t counters = 1 << 14;
__device__ std::uint32_t counter_words[counters];

class Counters {
public:
    std::uint32_t* of(cudaStream_t stream) {
        cudaStreamCaptureStatus capturing;
        unsigned long long name = 0;  // of the stream, and of no later one
        int device = 0;
        if (cudaGetDevice(&device) != cudaSuccess || cudaStreamIsCapturing(stream, &capturing) != cudaSuccess ||
            (capturing == cudaStreamCaptureStatusNone && cudaStreamGetId(stream, &name) != cudaSuccess)) {
            cudaGetLastError();
            return nullptr;
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        Words& words = words_[device];
        if (words.first == nullptr) return nullptr;
        if (capturing != cudaStreamCaptureStatusNone) return words.next();
        const auto [known, is_new] = words.of_stream.try_emplace(name, nullptr);
        if (is_new) known->second = words.next();
        return known->second;
    }

    // Before the first launch on the device, which is current: within a capture it could not be asked for.
    void find(int device) {
        void* address = nullptr;
        if (cudaGetSymbolAddress(&address, counter_words) != cudaSuccess) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        words_[device].first = static_cast<std::uint32_t*>(address);
    }

private:
    struct Words {
        std::uint32_t* first = nullptr;
        std::uint32_t given = 0;
        std::map<unsigned long long, std::uint32_t*> of_stream;
        std::uint32_t* next() { return given < counters ? first + given++ : nullptr; }
    };
    std::mutex mutex_;
    std::map<int, Words> words_;
};

Counters& all_counters() {
    static Counters* const instance = new Counters;  // never destroyed: a thread may launch while the process ends
    return *instance;
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string find_problem(int device) {
    int driver = 0, runtime = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver was found";
    cudaRuntimeGetVersion(&runtime);
    int count = 0;
    const cudaError_t counted = cudaGetDeviceCount(&count);
    if (counted == cudaErrorInsufficientDriver)
        return "the NVIDIA driver is too old: it supports CUDA " + version(driver) +
               ", the library was built with CUDA " + version(runtime);
    if (counted != cudaSuccess) return cudaGetErrorString(counted);
    if (device < 0 || device >= count) return "there is no CUDA device " + std::to_string(device);
    int before = 0, major = 0, minor = 0;
    cudaGetDevice(&before);
    cudaSetDevice(device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaFuncAttributes attributes{};
    const cudaError_t loaded = cudaFuncGetAttributes(&attributes, probe);
    if (loaded == cudaSuccess) all_counters().find(device);
    cudaSetDevice(before);
    if (loaded != cudaSuccess)
        return "the library has no kernels for this GPU (sm_" + std::to_string(10 * major + minor) + "; built for " +
               GFLV2_CUDA_ARCHITECTURES + "): " + cudaGetErrorString(loaded);
    return "";
}

}  // namespace

std::string problem(int device) {
    const std::string found = find_problem(device);
    cudaGetLastError();  // an answer must not leave an error behind for the next caller
    return found;
}

}  // namespace gflv2::cuda

namespace gflv2 {

std::uint32_t* launch_counter(void* stream) { return cuda::all_counters().of(static_cast<cudaStream_t>(stream)); }

}  // namespace gflv2
