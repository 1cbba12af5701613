// Python's view of `decode`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

void decode(const py::tuple& place, const py::kwargs& given) {
    Call call(place);
    Fields fields("decode", given);
    DecodeArguments a{};
    const LevelList classes = fields.levels("class_levels", nullptr, 1, {});
    const LevelList boxes = fields.levels("box_levels", nullptr, 4, fields.numbers("strides"));
    GFLV2_READ(class_dtype);
    GFLV2_READ(box_dtype);
    if ((a.class_dtype == Dtype::float64) != (a.box_dtype == Dtype::float64))
        throw std::invalid_argument("class_dtype: expected float64 with float64 box logits, and only then");
    check_bins(boxes.channels);
    if (classes.channels < 1) throw std::invalid_argument("classes: expected at least 1, got " + std::to_string(classes.channels));
    if (classes.table.count != boxes.table.count) throw std::invalid_argument("levels: the numbers differ");
    a.classes = classes.channels;
    a.bins = boxes.channels;
    a.batch = boxes.batch;
    a.topk = fields.number("topk", 1);
    a.class_levels = classes.table;
    a.box_levels = boxes.table;
    a.points = boxes.points;
    for (int l = 0; l < boxes.table.count; ++l) {
        const Level &level = classes.table.level[l], &other = boxes.table.level[l];
        const std::int64_t points = level.height * level.width;
        if (level.height != other.height || level.width != other.width) throw std::invalid_argument("levels: the sizes differ");
        if (points > INT32_MAX) throw std::length_error("levels: more than 2^31 points in a level");
        a.rows += points < a.topk ? points : a.topk;
    }
    GFLV2_READ(quality);
    GFLV2_READ(projection);
    GFLV2_READ(scales);
    GFLV2_READ(image_sizes);
    GFLV2_READ(scale_factors);
    GFLV2_READ(score_threshold);
    GFLV2_READ(offset);
    GFLV2_READ(keys);
    GFLV2_READ(boxes);
    GFLV2_READ(scores);
    GFLV2_READ(indices);
    GFLV2_READ(counts);
    GFLV2_READ(distributions);
    fields.finish();
    GFLV2_RUN(decode, call, a);
}

}  // namespace

void bind_decode(py::module_& m) { m.def("decode", &decode); }

}  // namespace gflv2
