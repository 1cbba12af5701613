// Python's view of `atss`.

#include <algorithm>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

// `shapes`: height and width of each level (points: 1 and n).
void read_levels(AtssArguments& a, Fields& fields, const std::vector<std::int64_t>& shapes, double anchor_scale) {
    const std::vector<double> strides = fields.numbers("strides");
    const auto points = py::reinterpret_borrow<py::sequence>(fields.get("points"));
    const std::size_t count = strides.size();
    if (count < 1 || count > std::size_t(max_levels) || shapes.size() != 2 * count)
        throw std::invalid_argument("shapes: expected 2 numbers for each of 1 to 8 strides, got " + std::to_string(shapes.size()));
    a.level_count = int(count);
    for (std::size_t l = 0; l < count; ++l) {
        const void* const given = points.size() ? address_of(points[l]) : nullptr;
        const std::int64_t height = shapes[2 * l], width = shapes[2 * l + 1], limit = given ? INT32_MAX : max_atss_side;
        if (height < 0 || width < 0 || height > limit || width > limit) throw std::length_error("levels: more than 2^15 cells a side");
        const float stride = float(strides[l]);
        a.level[l] = {static_cast<const float*>(given), a.points, std::int32_t(height), std::int32_t(width), stride, 1.0f / stride,
                      stride * float(anchor_scale / 2)};
        a.points += height * width;
    }
    if (a.points > INT32_MAX) throw std::length_error("levels: more than 2^31 points in an image");
}

std::vector<AtssImage> read_images(AtssArguments& a, Fields& fields, const std::vector<std::int64_t>& shapes) {
    a.batch = fields.number("batch", 0);
    const std::vector<ImageMemory> boxes = fields.images("boxes", a.batch, sizeof(float));
    const std::vector<ImageMemory> labels = fields.images("box_labels", a.batch, sizeof(std::int64_t));
    const std::vector<ImageMemory> ignored = fields.images("ignore_boxes", a.batch, sizeof(float));
    const ValidCells valid(fields, shapes, a.batch);
    const std::int64_t* counts;
    fields.read("counts", counts);
    std::vector<AtssImage> images(a.batch);
    for (std::int64_t i = 0; i < a.batch; ++i) {
        AtssImage& image = images[i];
        image.boxes = reinterpret_cast<const float*>(boxes[i].at);
        image.labels = reinterpret_cast<const std::int64_t*>(labels[i].at);
        image.limit = counts ? counts + i : nullptr;
        image.ignore_boxes = reinterpret_cast<const float*>(ignored[i].at);
        image.count = boxes[i].count;
        image.ignore_count = ignored[i].count;
        if (image.count > INT32_MAX) throw std::length_error("boxes: more than 2^31 in an image");
        a.ignoring |= image.ignore_count > 0;
        valid.write(i, image.rows, image.columns);
    }
    return images;
}

void atss(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("atss", given);
    AtssArguments a{};
    double anchor_scale;
    fields.read("anchor_scale", anchor_scale);
    const int topk = fields.number("topk", 1);
    const std::vector<std::int64_t> shapes = fields.integers("shapes");
    read_levels(a, fields, shapes, anchor_scale);
    std::int64_t cells = 1;
    for (int l = 0; l < a.level_count; ++l) cells = std::max(cells, std::int64_t(a.level[l].height) * a.level[l].width);
    a.topk = int(std::min(std::int64_t(topk), cells));
    const std::vector<AtssImage> images = read_images(a, fields, shapes);
    a.images = images.data();
    GFLV2_READ(offset);
    GFLV2_READ(ignore_threshold);
    GFLV2_READ(index);
    GFLV2_READ(iou);
    GFLV2_READ(labels);
    fields.finish();
    std::vector<std::uint8_t> on_host;
    if (a.ignoring) {
        const std::size_t bytes = std::size_t(a.batch) * a.points;
        if (call.device < 0) on_host.resize(bytes);
        a.ignored = call.device < 0 ? on_host.data() : static_cast<std::uint8_t*>(call.allocate(bytes));
    }
    GFLV2_RUN(atss, call, a);
}

}  // namespace

void bind_atss(py::module_& m) { m.def("atss", &atss); }

}  // namespace gflv2
