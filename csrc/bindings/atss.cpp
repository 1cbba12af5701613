// Python's view of `atss`.

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

// Levels arrive as (points, height, width) each, images as (boxes, labels, limit, ignore boxes, count, ignore count) and the
// valid rows and columns of each level.
struct PyAtss {
    AtssArguments arguments{};
    std::vector<AtssImage> images;

    PyAtss(const std::vector<std::int64_t>& levels, const std::vector<double>& strides, const std::vector<std::int64_t>& image_numbers,
           int topk, double anchor_scale, double offset, double ignore_threshold) {
        AtssArguments& a = arguments;
        const std::size_t count = strides.size();
        if (count < 1 || count > std::size_t(max_levels) || levels.size() != 3 * count)
            throw std::invalid_argument("levels: expected 3 numbers for each of 1 to 8 strides, got " + std::to_string(levels.size()));
        if (topk < 1) throw std::invalid_argument("topk: expected at least 1, got " + std::to_string(topk));
        a.level_count = int(count);
        std::int64_t cells = 1;
        for (std::size_t l = 0; l < count; ++l) {
            const std::int64_t *n = levels.data() + 3 * l, limit = n[0] ? INT32_MAX : max_atss_side;
            if (n[1] < 0 || n[2] < 0 || n[1] > limit || n[2] > limit) throw std::length_error("levels: more than 2^15 cells a side");
            a.level[l] = {pointer<const float>(n[0]), a.points, std::int32_t(n[1]), std::int32_t(n[2]), float(strides[l]),
                          1.0f / float(strides[l]), float(strides[l]) * float(anchor_scale / 2)};
            a.points += n[1] * n[2];
            cells = n[1] * n[2] > cells ? n[1] * n[2] : cells;
        }
        if (a.points > INT32_MAX) throw std::length_error("levels: more than 2^31 points in an image");
        a.topk = topk < cells ? topk : int(cells);
        a.offset = float(offset);
        a.ignore_threshold = float(ignore_threshold);

        const std::size_t fields = 6 + 2 * count;
        if (image_numbers.size() % fields) throw std::invalid_argument("images: expected " + std::to_string(fields) + " numbers each");
        a.batch = image_numbers.size() / fields;
        images.resize(a.batch);
        for (std::int64_t i = 0; i < a.batch; ++i) {
            const std::int64_t* n = image_numbers.data() + fields * i;
            AtssImage& image = images[i];
            image.boxes = pointer<const float>(n[0]);
            image.labels = pointer<const std::int64_t>(n[1]);
            image.limit = pointer<const std::int64_t>(n[2]);
            image.ignore_boxes = pointer<const float>(n[3]);
            image.count = n[4];
            image.ignore_count = n[5];
            if (image.count > INT32_MAX) throw std::length_error("boxes: more than 2^31 in an image");
            a.ignoring |= image.ignore_count > 0;
            for (std::size_t l = 0; l < count; ++l) {
                // Never more than there are.
                image.rows[l] = std::int32_t(clamp_to(n[6 + 2 * l], a.level[l].height));
                image.columns[l] = std::int32_t(clamp_to(n[7 + 2 * l], a.level[l].width));
            }
        }
        a.images = images.data();
    }

    static std::int64_t clamp_to(std::int64_t value, std::int64_t most) { return value < 0 ? 0 : value > most ? most : value; }
};

void atss(int device, std::int64_t where, const std::vector<std::int64_t>& levels, const std::vector<double>& strides,
          const std::vector<std::int64_t>& images, int topk, double anchor_scale, double offset, double ignore_threshold,
          std::int64_t index, std::int64_t iou, std::int64_t labels, std::int64_t ignored) {
    PyAtss call(levels, strides, images, topk, anchor_scale, offset, ignore_threshold);
    AtssArguments& a = call.arguments;
    a.index = pointer<std::int64_t>(index);
    a.iou = pointer<float>(iou);
    a.labels = pointer<std::int64_t>(labels);
    a.ignored = pointer<std::uint8_t>(ignored);
    if (a.ignoring && !a.ignored) throw std::invalid_argument("ignored: expected memory where there are ignore boxes");
    GFLV2_RUN(atss, device, where, a);
}

}  // namespace

void bind_atss(py::module_& m) { m.def("atss", &atss); }

}  // namespace gflv2
