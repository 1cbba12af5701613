// Python's view of `task_aligned`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

std::vector<TaskAlignedImage> read_images(TaskAlignedArguments& a, Fields& fields) {
    const std::vector<ImageMemory> boxes = fields.images("gt_boxes", a.batch, sizeof(float), 3);
    const std::vector<ImageMemory> labels = fields.images("gt_labels", a.batch, sizeof(std::int64_t), 2);
    const std::int64_t* counts;
    fields.read("counts", counts);
    std::vector<TaskAlignedImage> images(a.batch);
    for (std::int64_t i = 0; i < a.batch; ++i) {
        images[i] = {reinterpret_cast<const float*>(boxes[i].at), reinterpret_cast<const std::int64_t*>(labels[i].at),
                     counts ? counts + i : nullptr, boxes[i].count, a.total_boxes};
        a.total_boxes += boxes[i].count;
        if (boxes[i].count > INT32_MAX) throw std::length_error("gt_boxes: more than 2^31 in an image");
    }
    return images;
}

TaskAlignedArguments read(Fields& fields, Call& call) {
    TaskAlignedArguments a{};
    const Cube scores = fields.cube("scores");
    a.scores = scores.at;
    a.dtype = scores.dtype;
    a.batch = scores.shape[0], a.points = scores.shape[1], a.classes = scores.shape[2];
    a.image_stride = scores.strides[0], a.point_stride = scores.strides[1], a.class_stride = scores.strides[2];
    if (a.points > INT32_MAX) throw std::length_error("points: more than 2^31 in an image");
    fields.read("boxes", a.boxes, "points", a.positions);
    a.images = call.keep(read_images(a, fields));
    a.topk = fields.integer("topk", 1);
    a.final_topk = fields.integer("final_topk", 0);
    fields.read("alpha", a.alpha, "beta", a.beta, "ciou", a.ciou, "inside", a.inside, "margin", a.margin, "min_side",
                a.min_side, "zeros", a.zeros, "containing", a.containing, "normalize", a.normalize, "eps", a.eps);
    fields.read("index", a.index, "iou", a.iou, "assigned_labels", a.labels, "targets", a.targets);
    a.claims = static_cast<std::uint32_t*>(GFLV2_WORKSPACE(call, std::size_t(a.batch) * a.points * sizeof *a.claims));
    a.most = static_cast<long long*>(GFLV2_WORKSPACE(call, 2 * std::size_t(a.total_boxes) * sizeof *a.most));
    return a;
}

}  // namespace

void bind_task_aligned(py::module_& m) { GFLV2_BIND(m, task_aligned, read); }

}  // namespace gflv2
