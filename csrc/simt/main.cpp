// simt_check: runs recorded calls (recorder.cpp) again and compares what they leave, byte by byte. Free of Python and
// torch, so that it can be built with the sanitizers: every tensor lies in memory of its own of exactly its size.
//
//   simt_check --list        names of the operations
//   simt_check FILE…

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels.hpp"
#include "simt/case.hpp"

namespace {

using namespace gflv2;

struct Operation {
    const char* name;
    void (*run)(const void* arguments);
};

const Operation operations[] = {
#define GFLV2_ENTRY(name, Arguments) \
    {#name, [](const void* a) { cuda::name(*static_cast<const Arguments*>(a), {0, nullptr}); }},
    GFLV2_CPU_KERNELS(GFLV2_ENTRY)};

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<unsigned char, Free>;

// As aligned as torch's tensors are, and not a byte longer than needed.
Memory memory_with(const simt::Bytes& bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes.size()) != 0) throw std::bad_alloc();
    if (!bytes.empty()) std::memcpy(memory, bytes.data(), bytes.size());
    return Memory(static_cast<unsigned char*>(memory));
}

// True if the call leaves what it left when it was recorded.
bool repeat(const char* path) {
    const simt::Case recorded = simt::read_case(path);
    std::vector<Memory> blocks, regions;
    for (const simt::Bytes& block : recorded.blocks) blocks.push_back(memory_with(block));
    for (const simt::Region& region : recorded.regions) regions.push_back(memory_with(region.before));
    for (const simt::Pointer& p : recorded.pointers) {
        unsigned char* const target = (p.in_block ? blocks : regions)[p.target].get() + p.target_offset;
        std::memcpy(blocks[p.block].get() + p.offset, &target, sizeof target);
    }

    const Operation* operation = nullptr;
    for (const Operation& candidate : operations)
        if (recorded.operation == candidate.name) operation = &candidate;
    if (operation == nullptr) {
        std::printf("%s: there is no operation %s\n", path, recorded.operation.c_str());
        return false;
    }
    operation->run(blocks[0].get());

    bool same = true;
    for (std::size_t i = 0; i < regions.size(); ++i) {
        const simt::Region& region = recorded.regions[i];
        const simt::Bytes& expected = region.after.empty() ? region.before : region.after;
        std::size_t differ = 0, first = 0;
        for (std::size_t at = expected.size(); at-- > 0;) {
            if (regions[i].get()[at] == expected[at]) continue;
            ++differ;
            first = at;
        }
        if (differ == 0) continue;
        same = false;
        std::printf("%s: %zu of %zu bytes of tensor %zu differ, the first is %zu\n", path, differ, expected.size(), i,
                    first);
    }
    return same;
}

}  // namespace

int main(int count, char** words) {
    if (count == 2 && std::string(words[1]) == "--list") {
        for (const Operation& operation : operations) std::puts(operation.name);
        return 0;
    }
    int failed = 0;
    for (int i = 1; i < count; ++i) {
        try {
            failed += !repeat(words[i]);
        } catch (const std::exception& error) {
            std::printf("%s: %s\n", words[i], error.what());
            ++failed;
        }
    }
    std::printf("%d calls, %d failed\n", count - 1, failed);
    return failed > 0;
}
