// Python's view of `dynamic_soft_label`.

#include "bindings/bindings.hpp"
#include "gflv2/api.hpp"

namespace gflv2 {
namespace {

SoftLabelCost cost_of(const std::string& name) {
    if (name == "rtmdet") return SoftLabelCost::rtmdet;
    if (name == "nanodet") return SoftLabelCost::nanodet;
    if (name == "simota") return SoftLabelCost::simota;
    if (name == "align_ota") return SoftLabelCost::align_ota;
    throw std::invalid_argument("cost: expected rtmdet, nanodet, simota or align_ota, got " + name);
}

std::vector<SoftLabelImage> read_images(const DynamicSoftLabelArguments& a, Fields& fields) {
    const std::vector<ImageMemory> boxes = fields.images("gt_boxes", a.batch, sizeof(float), 3);
    const std::vector<ImageMemory> labels = fields.images("gt_labels", a.batch, sizeof(std::int64_t), 2);
    const std::int64_t* counts;
    fields.read("counts", counts);
    std::vector<SoftLabelImage> images(a.batch);
    for (std::int64_t i = 0; i < a.batch; ++i) {
        if (boxes[i].count > INT32_MAX) throw std::length_error("gt_boxes: more than 2^31 in an image");
        images[i] = {reinterpret_cast<const float*>(boxes[i].at), reinterpret_cast<const std::int64_t*>(labels[i].at),
                     counts ? counts + i : nullptr, boxes[i].count};
    }
    return images;
}

DynamicSoftLabelArguments read(Fields& fields, Call& call) {
    DynamicSoftLabelArguments a{};
    const Cube values = fields.cube("logits");
    if (values.shape[1] > INT32_MAX) throw std::length_error("logits: more than 2^31 points in an image");
    a.dtype = values.dtype;
    a.values = values.at;
    a.batch = values.shape[0];
    a.points = values.shape[1];
    a.classes = check_classes(int(values.shape[2]));
    a.value_image = values.strides[0];
    a.value_point = values.strides[1];
    a.value_class = values.strides[2];
    a.cost = cost_of(py::cast<std::string>(fields.get("cost")));
    a.topk = fields.integer("topk", 1);
    a.images = call.keep(read_images(a, fields));
    fields.read("iou_weight", a.iou_weight, "class_weight", a.class_weight, "center_radius", a.center_radius, "boxes",
                a.boxes, "points", a.places, "strides", a.strides);
    fields.read("index", a.index, "iou", a.iou, "labels", a.labels);
    a.workspace = GFLV2_WORKSPACE(call, cuda::dynamic_soft_label_workspace(a.batch, a.points));
    return a;
}

}  // namespace

void bind_dynamic_soft_label(py::module_& m) { GFLV2_BIND(m, dynamic_soft_label, read); }

}  // namespace gflv2
