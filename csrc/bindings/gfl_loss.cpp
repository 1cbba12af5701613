// Python's view of `gfl_targets` and of the box losses of `gfl_loss`.

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

void check_bins(int bins) {
    if (bins < min_bins || bins > max_bins) throw std::invalid_argument("bins: expected 2 to 65, got " + std::to_string(bins));
}

// images: address and number of the boxes, then the valid rows and columns of each level.
std::vector<GflImage> read_images(const std::vector<std::int64_t>& numbers, std::int64_t batch, int levels) {
    const std::size_t fields = 2 + 2 * std::size_t(levels);
    if (numbers.size() != fields * std::size_t(batch))
        throw std::invalid_argument("images: expected " + std::to_string(fields * batch) + " numbers, got " + std::to_string(numbers.size()));
    std::vector<GflImage> images(batch);
    for (std::int64_t i = 0; i < batch; ++i) {
        const std::int64_t* n = numbers.data() + fields * i;
        images[i].boxes = pointer<const void>(n[0]);
        images[i].count = n[1];
        for (int l = 0; l < levels; ++l) {
            images[i].rows[l] = std::int32_t(n[2 + 2 * l]);
            images[i].columns[l] = std::int32_t(n[3 + 2 * l]);
        }
    }
    return images;
}

// results: labels, boxes, scores, weights, label weights, sums, workspace.
void gfl_targets(int device, std::int64_t where, int dtype, int bins, std::int64_t batch, int level_count, const std::vector<std::int64_t>& levels,
                 const std::vector<double>& strides, int class_dtype, int classes, const std::vector<std::int64_t>& class_levels,
                 std::int64_t scales, std::int64_t projection, std::int64_t quality, double offset, std::int64_t index, std::int64_t assigned,
                 const std::vector<std::int64_t>& images, const std::array<std::int64_t, 7>& results) {
    check_bins(bins);
    if (classes < 1) throw std::invalid_argument("classes: expected at least 1, got " + std::to_string(classes));
    GflTargetsArguments a{};
    a.dtype = read_dtype(dtype);
    a.class_dtype = read_dtype(class_dtype);
    if ((a.dtype == Dtype::float64) != (a.class_dtype == Dtype::float64))
        throw std::invalid_argument("class_dtype: expected float64 with float64 box logits, and only then");
    a.bins = bins;
    a.classes = classes;
    a.batch = batch;
    a.levels = read_levels(levels, level_count, strides, false);
    a.points = points_of(a.levels);
    a.class_levels = read_levels(class_levels, level_count, {}, false);
    a.scales = pointer<const void>(scales);
    a.projection = pointer<const void>(projection);
    a.quality = pointer<const void>(quality);
    a.offset = offset;
    a.index = pointer<const std::int64_t>(index);
    a.assigned = pointer<const std::int64_t>(assigned);
    const std::vector<GflImage> read = read_images(images, batch, level_count);
    a.images = read.data();
    a.labels = pointer<std::int64_t>(results[0]);
    a.boxes = pointer<void>(results[1]);
    a.scores = pointer<void>(results[2]);
    a.weights = pointer<void>(results[3]);
    a.label_weights = pointer<void>(results[4]);
    a.sums = pointer<void>(results[5]);
    a.workspace = pointer<void>(results[6]);
    GFLV2_RUN(gfl_targets, device, where, a);
}

void box_loss_forward(int device, std::int64_t where, int dtype, int bins, std::int64_t batch, int level_count, const std::vector<std::int64_t>& levels,
              const std::vector<double>& strides, std::int64_t scales, std::int64_t projection, double offset, std::int64_t boxes,
              std::int64_t weights, std::int64_t normaliser, double giou_factor, double dfl_factor, std::int64_t sides, std::int64_t losses,
              std::int64_t workspace) {
    check_bins(bins);
    BoxLossArguments a{};
    a.dtype = read_dtype(dtype);
    a.bins = bins;
    a.batch = batch;
    a.levels = read_levels(levels, level_count, strides, false);
    a.points = points_of(a.levels);
    a.scales = pointer<const void>(scales);
    a.projection = pointer<const void>(projection);
    a.offset = offset;
    a.boxes = pointer<const void>(boxes);
    a.weights = pointer<const void>(weights);
    a.normaliser = pointer<const void>(normaliser);
    a.factors[0] = giou_factor;
    a.factors[1] = dfl_factor;
    a.sides = pointer<void>(sides);
    a.losses = pointer<void>(losses);
    a.workspace = pointer<void>(workspace);
    GFLV2_RUN(box_loss_forward, device, where, a);
}

}  // namespace

void bind_gfl_loss(py::module_& m) {
    m.def("gfl_targets", &gfl_targets);
    m.def("box_loss_forward", &box_loss_forward);
#if defined(GFLV2_HAS_CUDA)
    m.def("gfl_targets_workspace", [](const std::vector<std::int64_t>& levels, int level_count, std::int64_t batch) {
        return cuda::gfl_targets_workspace(read_levels(levels, level_count, {}, false), batch);
    });
    m.def("box_loss_forward_workspace", [](const std::vector<std::int64_t>& levels, int level_count, std::int64_t batch) {
        return cuda::box_loss_forward_workspace(read_levels(levels, level_count, {}, false), batch);
    });
#endif
}

}  // namespace gflv2
