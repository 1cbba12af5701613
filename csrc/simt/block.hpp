// What both ways to run a block (fibers.cpp, threads.cpp) share: its shared memory, and the check of a barrier.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <string>
#include <vector>

#include "simt/launch.hpp"

namespace gflv2::simt {

// Throws where CUDA would refuse the launch.
void check_sizes(const Launch&);

// "kernel …, block …: "
std::string place_of(const Launch&, unsigned block);

// Where a thread has stopped: at a barrier, or (no file) at its end.
struct Stop {
    const char* file;
    int line;
    bool operator==(const Stop& other) const { return file == other.file && line == other.line; }
};

// Empty if all threads stopped at the same place, else what is wrong.
std::string divergence(const std::vector<Stop>& stops);

class SharedMemory {
public:
    ~SharedMemory() { std::free(memory_); }
    SharedMemory() = default;
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;

    // Before a block: `bytes` of NaN between two guards.
    void poison(std::size_t bytes);
    // After it: empty if the guards are untouched, else what is wrong. The address sanitizer's marks are taken away.
    std::string check();
    unsigned char* begin() const { return memory_ + margin; }

private:
    static constexpr std::size_t margin = 1024;
    unsigned char* memory_ = nullptr;
    std::size_t bytes_ = 0, room_ = 0;
};

}  // namespace gflv2::simt
