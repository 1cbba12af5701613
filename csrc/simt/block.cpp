#include "simt/block.hpp"

#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

__thread gflv2::simt::Index threadIdx, blockIdx, blockDim, gridDim;

namespace gflv2::simt {
namespace {

constexpr std::uint32_t guard = 0x7fff5a5a;  // a NaN too, as are two of them as a double

// The first argument of launch(): up to a comma outside all brackets.
std::string kernel_of(const char* text) {
    int depth = 0;
    const char* end = text;
    for (; *end && !(depth == 0 && *end == ','); ++end)
        depth += std::strchr("(<[{", *end) ? 1 : std::strchr(")>]}", *end) ? -1 : 0;
    return std::string(text, end);
}

}  // namespace

void check_sizes(const Launch& launched) {
    const auto refuse = [&](const char* what, std::size_t value) {
        throw std::invalid_argument("launching kernel " + kernel_of(launched.text) + ": CUDA refuses " +
                                    std::to_string(value) + " " + what);
    };
    if (launched.grid == 0 || launched.grid > 0x7fffffffu) refuse("blocks", launched.grid);
    if (launched.block == 0 || launched.block > 1024) refuse("threads a block", launched.block);
    if (launched.shared_bytes > 48 * 1024) refuse("bytes of shared memory", launched.shared_bytes);
    if (launched.parameter_bytes > 4096) refuse("bytes of parameters", launched.parameter_bytes);
}

std::string place_of(const Launch& launched, unsigned block) {
    return "kernel " + kernel_of(launched.text) + ", block " + std::to_string(block) + " of " +
           std::to_string(launched.grid) + ": ";
}

std::string divergence(const std::vector<Stop>& stops) {
    bool same = true;
    for (const Stop& stop : stops) same = same && stop == stops[0];
    if (same) return "";
    std::map<std::pair<std::string, int>, unsigned> counts;
    for (const Stop& stop : stops) ++counts[{stop.file ? stop.file : "", stop.line}];
    std::string text = "a barrier that not all threads reach:";
    for (const auto& [where, count] : counts) {
        text += (text.back() == ':' ? " " : ", ") + std::to_string(count);
        text += where.first.empty() ? " have ended" : " wait at " + where.first + ":" + std::to_string(where.second);
    }
    return text;
}

void SharedMemory::poison(std::size_t bytes) {
    bytes_ = bytes;
    if (bytes + 2 * margin > room_) {
        std::free(memory_);
        room_ = (bytes + 2 * margin + 63) / 64 * 64;
        memory_ = static_cast<unsigned char*>(std::aligned_alloc(64, room_));
        if (memory_ == nullptr) throw std::bad_alloc();
    }
    unsigned char* const end = begin() + bytes;
    for (std::size_t i = 0; i < margin; i += sizeof guard) {
        std::memcpy(memory_ + i, &guard, sizeof guard);
        if (end + i + sizeof guard <= memory_ + room_) std::memcpy(end + i, &guard, sizeof guard);
    }
    std::memset(begin(), 0xff, bytes);
    ASAN_POISON_MEMORY_REGION(memory_, margin);
    ASAN_POISON_MEMORY_REGION(end, memory_ + room_ - end);
}

std::string SharedMemory::check() {
    unsigned char* const end = begin() + bytes_;
    ASAN_UNPOISON_MEMORY_REGION(memory_, room_);
    for (std::size_t i = 0; i < margin; i += sizeof guard) {
        const bool before = std::memcmp(memory_ + i, &guard, sizeof guard) != 0;
        const bool after = end + i + sizeof guard <= memory_ + room_ && std::memcmp(end + i, &guard, sizeof guard) != 0;
        if (before) return "wrote " + std::to_string(margin - i) + " bytes before its shared memory";
        if (after)
            return "wrote " + std::to_string(i) + " bytes behind its " + std::to_string(bytes_) +
                   " bytes of shared memory";
    }
    return "";
}

}  // namespace gflv2::simt
