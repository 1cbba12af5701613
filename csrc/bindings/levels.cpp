// The table of levels from the numbers that Python hands over.

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"

namespace gflv2 {

LevelTable read_levels(const std::vector<std::int64_t>& numbers, int count, const std::vector<double>& strides, bool gradient) {
    const std::size_t fields = gradient ? 14 : 8;
    if (count < 1 || count > max_levels) throw std::invalid_argument("levels: expected 1 to 8, got " + std::to_string(count));
    if (numbers.size() != fields * count)
        throw std::invalid_argument("levels: expected " + std::to_string(fields * count) + " numbers, got " + std::to_string(numbers.size()));
    if (!strides.empty() && strides.size() != std::size_t(count))
        throw std::invalid_argument("strides: expected one per level, got " + std::to_string(strides.size()));
    LevelTable table{};
    table.count = count;
    std::int64_t first_point = 0;
    for (int l = 0; l < count; ++l) {
        const std::int64_t* n = numbers.data() + fields * l;
        Level& level = table.level[l];
        level.logits = pointer<const void>(n[0]);
        level.height = n[1];
        level.width = n[2];
        level.strides = {n[3], n[4], n[5], n[6], n[7]};
        if (gradient) {
            level.grad_logits = pointer<void>(n[8]);
            level.grad_strides = {n[9], n[10], n[11], n[12], n[13]};
        }
        level.first_point = first_point;
        level.stride = strides.empty() ? 0.0 : strides[l];
        first_point += level.height * level.width;
    }
    return table;
}

}  // namespace gflv2
