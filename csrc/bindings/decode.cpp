// Python's view of `decode`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

DecodeArguments read(Fields& fields, Call& call) {
    DecodeArguments a{};
    const LevelList classes = fields.levels("class_logits", nullptr, 1),
                    boxes = fields.levels("box_logits", nullptr, 4, fields.numbers("strides"));
    check_mixed(classes.dtype, boxes.dtype);
    if (classes.table.count != boxes.table.count) throw std::invalid_argument("levels: the numbers differ");
    a.class_dtype = classes.dtype;
    a.box_dtype = boxes.dtype;
    a.classes = check_classes(classes.channels);
    a.bins = check_bins(boxes.channels);
    a.batch = boxes.batch;
    a.topk = fields.integer("pre_topk", 1);
    a.class_levels = classes.table;
    a.box_levels = boxes.table;
    a.points = boxes.points;
    for (int l = 0; l < boxes.table.count; ++l) {
        const Level &level = classes.table.level[l], &other = boxes.table.level[l];
        const std::int64_t points = level.height * level.width;
        if (level.height != other.height || level.width != other.width)
            throw std::invalid_argument("levels: the sizes differ");
        if (points > INT32_MAX) throw std::length_error("levels: more than 2^31 points in a level");
        a.rows += points < a.topk ? points : a.topk;
    }
    const Dtype s = arithmetic(a.box_dtype);
    fields.read("quality", a.quality, "projection", a.projection, "scales", a.scales, "image_sizes", a.image_sizes,
                "scale_factors", a.scale_factors, "score_thr", a.score_threshold, "offset", a.offset);
    fields.read_written(s, "boxes", a.boxes, "scores", a.scores, "distributions", a.distributions);
    fields.read("points", a.indices, "counts", a.counts);
    a.keys = call.allocate(std::size_t(a.batch) * a.points * (s == Dtype::float64 ? sizeof(double) : sizeof(float)));
    return a;
}

}  // namespace

void bind_decode(py::module_& m) { GFLV2_BIND(m, decode, read); }

}  // namespace gflv2
