// Python's view of `decode`.

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

// Optional pointers are 0 where there is nothing.
void decode(int device, std::int64_t where, int class_dtype, int classes, int box_dtype, int bins, std::int64_t batch, int level_count,
            const std::vector<std::int64_t>& class_levels, const std::vector<std::int64_t>& box_levels, std::int64_t quality,
            std::int64_t projection, std::int64_t scales, std::int64_t image_sizes, std::int64_t scale_factors,
            const std::vector<double>& strides, std::int64_t topk, double score_threshold, double offset, std::int64_t keys,
            std::int64_t boxes, std::int64_t scores, std::int64_t indices, std::int64_t counts, std::int64_t distributions) {
    const auto is_double = [](int dtype) { return dtype == int(Dtype::float64); };
    if (class_dtype < 0 || class_dtype > 3 || box_dtype < 0 || box_dtype > 3 || is_double(class_dtype) != is_double(box_dtype))
        throw std::invalid_argument("dtypes: expected 0 to 2 each, or 3 for both, got " + std::to_string(class_dtype) + " and " + std::to_string(box_dtype));
    if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
    if (classes < 1) throw std::invalid_argument("classes: expected at least 1, got " + std::to_string(classes));
    if (topk < 1) throw std::invalid_argument("topk: expected at least 1, got " + std::to_string(topk));
    DecodeArguments a{};
    a.class_dtype = Dtype(class_dtype);
    a.box_dtype = Dtype(box_dtype);
    a.classes = classes;
    a.bins = bins;
    a.batch = batch;
    a.topk = topk;
    a.class_levels = read_levels(class_levels, level_count, {}, false);
    a.box_levels = read_levels(box_levels, level_count, strides, false);
    for (int l = 0; l < level_count; ++l) {
        const Level &level = a.class_levels.level[l], &other = a.box_levels.level[l];
        const std::int64_t points = level.height * level.width;
        if (level.height != other.height || level.width != other.width) throw std::invalid_argument("levels: the sizes differ");
        if (points > INT32_MAX) throw std::length_error("levels: more than 2^31 points in a level");
        a.points += points;
        a.rows += points < topk ? points : topk;
    }
    a.quality = pointer<const void>(quality);
    a.projection = pointer<const void>(projection);
    a.scales = pointer<const void>(scales);
    a.image_sizes = pointer<const void>(image_sizes);
    a.scale_factors = pointer<const void>(scale_factors);
    a.score_threshold = score_threshold;
    a.offset = offset;
    a.keys = pointer<void>(keys);
    a.boxes = pointer<void>(boxes);
    a.scores = pointer<void>(scores);
    a.indices = pointer<std::int64_t>(indices);
    a.counts = pointer<std::int64_t>(counts);
    a.distributions = pointer<void>(distributions);
    GFLV2_RUN(decode, device, where, a);
}

}  // namespace

void bind_decode(py::module_& m) { m.def("decode", &decode); }

}  // namespace gflv2
