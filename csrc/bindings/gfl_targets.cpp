// Python's view of `gfl_targets`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

void gfl_targets(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("gfl_targets", given);
    GflTargetsArguments a{};
    const LevelList classes = fields.levels("class_levels", nullptr, 1, {});
    const LevelList box_levels = fields.levels("levels", nullptr, 4, fields.numbers("strides"));
    check_bins(box_levels.channels);
    if (classes.channels < 1) throw std::invalid_argument("classes: expected at least 1, got " + std::to_string(classes.channels));
    if (classes.table.count != box_levels.table.count || classes.points != box_levels.points)
        throw std::invalid_argument("class_levels: expected the sizes of the box logits");
    a.bins = box_levels.channels;
    a.classes = classes.channels;
    a.batch = box_levels.batch;
    a.points = box_levels.points;
    a.levels = box_levels.table;
    a.class_levels = classes.table;
    GFLV2_READ(dtype);
    GFLV2_READ(class_dtype);
    if ((a.dtype == Dtype::float64) != (a.class_dtype == Dtype::float64))
        throw std::invalid_argument("class_dtype: expected float64 with float64 box logits, and only then");
    GFLV2_READ(scales);
    GFLV2_READ(projection);
    GFLV2_READ(quality);
    GFLV2_READ(offset);
    GFLV2_READ(index);
    GFLV2_READ(assigned);

    std::vector<std::int64_t> shapes;
    for (int l = 0; l < a.levels.count; ++l) {
        shapes.push_back(a.levels.level[l].height);
        shapes.push_back(a.levels.level[l].width);
    }
    const ValidCells valid(fields, shapes, a.batch);
    const std::vector<ImageMemory> memory = fields.images("image_boxes", a.batch, a.dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
    std::vector<GflImage> images(a.batch);
    for (std::int64_t i = 0; i < a.batch; ++i) {
        images[i].boxes = memory[i].at;
        images[i].count = memory[i].count;
        valid.write(i, images[i].rows, images[i].columns);
    }
    a.images = images.data();

    GFLV2_READ(labels);
    GFLV2_READ(boxes);
    GFLV2_READ(scores);
    GFLV2_READ(weights);
    GFLV2_READ(label_weights);
    GFLV2_READ(sums);
    fields.finish();
    a.workspace = GFLV2_WORKSPACE(call, cuda::gfl_targets_workspace(a.levels, a.batch));
    GFLV2_RUN(gfl_targets, call, a);
}

}  // namespace

void bind_gfl_targets(py::module_& m) { m.def("gfl_targets", &gfl_targets); }

}  // namespace gflv2
