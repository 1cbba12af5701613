// How a CUDA launch covers all levels of a whole batch: a flat grid, level-major, then by image, then by chunk of
// points. Points of a level are counted in 32 bits (64-bit division is slow on a GPU), element offsets in 64.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "gflv2/macros.hpp"
#include "gflv2/types.hpp"

namespace gflv2 {

// Level l owns the blocks [first[l], first[l + 1]).
struct BlockTable {
    std::uint32_t first[max_levels + 1];
    std::uint32_t chunks[max_levels];  // per image
    std::uint32_t count;               // of all levels
};

inline BlockTable block_table(const LevelTable& levels, std::int64_t batch, std::int64_t points_per_block) {
    BlockTable table{};
    std::int64_t first = 0;
    for (int l = 0; l < max_levels; ++l) {
        if (l < levels.count) {
            const std::int64_t points = levels.level[l].height * levels.level[l].width;
            const std::int64_t chunks = (points + points_per_block - 1) / points_per_block;
            first += chunks * batch;
            if (points > INT32_MAX || first > INT32_MAX) throw std::length_error("more than 2^31 points in one call");
            table.chunks[l] = std::uint32_t(chunks);
        }
        table.first[l + 1] = std::uint32_t(first);
    }
    table.count = std::uint32_t(first);
    return table;
}

}  // namespace gflv2

GFLV2_BEGIN

// The work of one block.
struct Chunk {
    int level;
    std::uint32_t image;
    std::uint32_t first;  // index within the level of its first point
};

GFLV2_HD Chunk chunk_of(const BlockTable& blocks, int levels, std::uint32_t block, std::uint32_t points_per_block) {
    int level = 0;
    while (level + 1 < levels && block >= blocks.first[level + 1]) ++level;
    const std::uint32_t local = block - blocks.first[level];
    const std::uint32_t image = local / blocks.chunks[level];
    return {level, image, (local - image * blocks.chunks[level]) * points_per_block};
}

// Element offset of a point within its image.
GFLV2_HD std::int64_t point_offset(const Level& level, const Strides& strides, std::uint32_t point) {
    if (level.height == 1) return point * strides.x;
    const std::uint32_t width = std::uint32_t(level.width), y = point / width;
    return y * strides.y + (point - y * width) * strides.x;
}

GFLV2_END
