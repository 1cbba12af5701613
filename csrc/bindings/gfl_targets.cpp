// Python's view of `gfl_targets`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

GflTargetsArguments read(Fields& fields, Call& call) {
    GflTargetsArguments a{};
    const LevelList classes = fields.levels("class_logits", nullptr, 1),
                    boxes = fields.levels("box_logits", nullptr, 4, fields.numbers("strides"));
    check_mixed(classes.dtype, boxes.dtype);
    if (classes.table.count != boxes.table.count || classes.points != boxes.points)
        throw std::invalid_argument("class_logits: expected the sizes of the box logits");
    take_levels(a, boxes);
    a.class_dtype = classes.dtype;
    a.bins = check_bins(boxes.channels);
    a.classes = check_classes(classes.channels);
    a.class_levels = classes.table;
    fields.read("scales", a.scales, "projection", a.projection, "quality", a.quality, "offset", a.offset, "index",
                a.index, "assigned", a.assigned);

    std::vector<std::int64_t> shapes;
    for (int l = 0; l < a.levels.count; ++l)
        shapes.insert(shapes.end(), {a.levels.level[l].height, a.levels.level[l].width});
    const ValidCells valid(fields, std::move(shapes), a.batch);
    const Dtype s = arithmetic(a.dtype);
    const std::vector<ImageMemory> memory =
        fields.images("boxes", a.batch, s == Dtype::float64 ? sizeof(double) : sizeof(float), 3);
    std::vector<GflImage> images(a.batch);
    for (std::int64_t i = 0; i < a.batch; ++i) {
        images[i].boxes = memory[i].at;
        images[i].count = memory[i].count;
        valid.write(i, images[i].rows, images[i].columns);
    }
    a.images = call.keep(std::move(images));

    fields.read("labels", a.labels);
    fields.read_written(s, "target_boxes", a.boxes, "scores", a.scores, "weights", a.weights, "label_weights",
                        a.label_weights, "sums", a.sums);
    a.workspace = GFLV2_WORKSPACE(call, cuda::gfl_targets_workspace(a.levels, a.batch));
    return a;
}

}  // namespace

void bind_gfl_targets(py::module_& m) { GFLV2_BIND(m, gfl_targets, read); }

}  // namespace gflv2
