// Can the kernels run on a device? Asked before the first call, so that a refusal has words.

#include <cuda_runtime.h>

#include <string>

#include "gflv2/api.hpp"

namespace gflv2::cuda {
namespace {

__global__ void probe() {}

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
