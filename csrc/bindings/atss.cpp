// Python's view of `atss`.

#include <algorithm>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

// `shapes`: height and width of each level (points: 1 and n).
void read_levels(AtssArguments& a, Fields& fields, const std::vector<std::int64_t>& shapes) {
    double anchor_scale;
    fields.read("anchor_scale", anchor_scale);
    const std::vector<double> strides = fields.numbers("strides");
    const std::vector<py::object> points = fields.objects("points");
    const std::size_t count = strides.size();
    if (count < 1 || count > std::size_t(max_levels) || shapes.size() != 2 * count)
        throw std::invalid_argument("shapes: expected 2 numbers for each of 1 to 8 strides, got " +
                                    std::to_string(shapes.size()));
    const int topk = fields.integer("topk", 1);
    std::int64_t cells = 1;
    a.level_count = int(count);
    for (std::size_t l = 0; l < count; ++l) {
        const void* const given = points.empty() ? nullptr : address_of(points[l]);
        const std::int64_t height = shapes[2 * l], width = shapes[2 * l + 1],
                           limit = points.empty() ? max_atss_side : INT32_MAX;
        if (height < 0 || width < 0 || height > limit || width > limit)
            throw std::length_error("levels: more than 2^15 cells a side");
        const float stride = float(strides[l]);
        a.level[l] = {static_cast<const float*>(given),
                      a.points,
                      std::int32_t(height),
                      std::int32_t(width),
                      stride,
                      1.0f / stride,
                      stride * float(anchor_scale / 2)};
        a.points += height * width;
        cells = std::max(cells, height * width);
    }
    if (a.points > INT32_MAX) throw std::length_error("levels: more than 2^31 points in an image");
    a.topk = int(std::min(std::int64_t(topk), cells));
}

std::vector<AtssImage> read_images(AtssArguments& a, Fields& fields, std::vector<std::int64_t> shapes) {
    const std::vector<ImageMemory> boxes = fields.images("boxes", a.batch, sizeof(float), 3);
    const std::vector<ImageMemory> labels = fields.images("labels", a.batch, sizeof(std::int64_t), 2);
    const std::vector<ImageMemory> ignored = fields.images("ignore_boxes", a.batch, sizeof(float), 3);
    const ValidCells valid(fields, std::move(shapes), a.batch);
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

AtssArguments read(Fields& fields, Call& call) {
    AtssArguments a{};
    const std::vector<std::int64_t> shapes = fields.integers("shapes");
    read_levels(a, fields, shapes);
    const Rows result = fields.rows("iou");
    a.batch = result.rows;
    a.iou = static_cast<float*>(result.at);
    a.images = call.keep(read_images(a, fields, shapes));
    fields.read("offset", a.offset, "ignore_iof_thr", a.ignore_threshold, "index", a.index, "assigned_labels",
                a.labels);
    if (a.ignoring) a.ignored = static_cast<std::uint8_t*>(call.allocate(std::size_t(a.batch) * a.points));
    a.workspace = GFLV2_WORKSPACE(call, cuda::atss_workspace(a));
    return a;
}

}  // namespace

void bind_atss(py::module_& m) { GFLV2_BIND(m, atss, read); }

}  // namespace gflv2
