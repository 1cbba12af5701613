// What the trials share. Each is a small kernel with a mistake that -DBROKEN puts in and that the emulation, or a
// sanitizer on it, must find; without it the same program must end well.
#pragma once

#include <cstdio>
#include <exception>
#include <limits>
#include <vector>

#include "gflv2/launch.hpp"

constexpr unsigned threads = 64, blocks = 3;

// Memory of exactly this length, full of NaN.
inline std::vector<float> unwritten(std::size_t count) {
    return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}

inline std::vector<float> numbers(std::size_t count) {
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = float(i % 7);
    return values;
}

// The program's exit status: 0 if the run throws nothing and leaves what is expected.
template <class Run> int trial(std::vector<float>& found, const std::vector<float>& expected, const Run& run) {
    try {
        run();
    } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        return 1;
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
        if (found[i] == expected[i]) continue;
        std::printf("element %zu is %g, expected %g\n", i, double(found[i]), double(expected[i]));
        return 1;
    }
    return 0;
}
