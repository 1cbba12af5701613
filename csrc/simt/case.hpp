// A recorded call of an operation: what it received and what it left, free of addresses. recorder.cpp writes it,
// main.cpp runs it again.
//
// The argument block is kept byte by byte, with the arrays on the host that it points to; and of the tensors the memory
// that they share. Which of its words are pointers is not declared anywhere: those that lie within one of these blocks
// or regions are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gflv2::simt {

using Bytes = std::vector<unsigned char>;

// The word at `offset` of block `block` points `target_offset` bytes into a region, or into a block.
struct Pointer {
    std::uint64_t block, offset, in_block, target, target_offset;
};

struct Region {
    Bytes before, after;  // after: empty where the call changed nothing
};

struct Case {
    std::string operation;
    std::vector<Bytes> blocks;  // the argument block comes first
    std::vector<Region> regions;
    std::vector<Pointer> pointers;
};

void write_case(const Case&, const std::string& path);
Case read_case(const std::string& path);

}  // namespace gflv2::simt
