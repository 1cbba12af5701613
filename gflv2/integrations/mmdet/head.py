"""``GFLV2Head``: the head of arXiv 2011.12885 in mmdet's training and test loops, on the fused operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from gflv2.integrations.mmdet import fused
from gflv2.nn import DGQP
from gflv2.ops import Decoded, Predictor, batched_nms, decode

_PLAIN_NMS = {"type", "iou_threshold", "split_thr"}


@MODELS.register_module(name="GFLV2Head", force=True)
class GFLV2Head(GFLHead):
    """Classes, box distributions and localisation quality; takes the authors' configurations and loads their files.

    ``forward`` returns logits: class logits c (B, C, H_l, W_l) and raw box logits z (B, 4·(n + 1), H_l, W_l) of L
    levels; scale, quality r and joint score σ(c)·σ(r) belong to loss and decoder. ``joint_scores`` forms the latter.

    Args:
        num_classes, in_channels, stacked_convs, feat_channels, anchor_generator, reg_max, conv_cfg, norm_cfg,
            bbox_coder, train_cfg, test_cfg, init_cfg: as mmdet's GFLHead. ``allowed_border`` must be −1 and
            ``pos_weight`` not positive.
        reg_topk: number k of largest probabilities of a side, for the quality predictor.
        reg_channels: its hidden units.
        add_mean: also the mean of the k values.
        loss_cls: QualityFocalLoss; β and weight are taken from it. ``use_sigmoid`` may be False, as the authors have
            it: the joint score is formed in log space either way.
        loss_bbox, loss_dfl: GIoULoss and DistributionFocalLoss; their weights count.
        legacy_background: one more class channel, as in the authors' files: trained towards 0, dropped after NMS.
            Without it a file's last channel of C + 1 is dropped when it is loaded.
        weight_floor: least Σw that box losses are divided by; mmdet's GFLHead has 1.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *args: Any,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        reg_topk: int = 4,
        reg_channels: int = 64,
        add_mean: bool = True,
        legacy_background: bool = False,
        weight_floor: float = 1e-12,
        **kwargs: Any,
    ) -> None:
        self.reg_topk, self.reg_channels, self.add_mean = reg_topk, reg_channels, add_mean
        self.legacy_background, self.weight_floor = legacy_background, weight_floor
        loss_cls = {**(loss_cls or {"type": "QualityFocalLoss", "beta": 2.0, "loss_weight": 1.0}), "use_sigmoid": True}
        loss_bbox = loss_bbox or {"type": "GIoULoss", "loss_weight": 2.0}
        super().__init__(num_classes, in_channels, *args, loss_cls=loss_cls, loss_bbox=loss_bbox, **kwargs)
        fused.check_parts(self)
        self.register_load_state_dict_pre_hook(_drop_background)

    def _init_layers(self) -> None:
        self.cls_out_channels = self.num_classes + self.legacy_background
        super()._init_layers()
        self.reg_conf = DGQP(self.reg_max, self.reg_topk, self.reg_channels, self.add_mean)

    def forward_single(self, x: Tensor, scale: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """Class logits and raw box logits of one level; the scale is applied by loss and decoder, in float32."""
        classes = boxes = x
        for convolution in self.cls_convs:
            classes = convolution(classes)
        for convolution in self.reg_convs:
            boxes = convolution(boxes)
        return self.gfl_cls(classes), self.gfl_reg(boxes)

    def joint_scores(self, class_logits: Sequence[Tensor], box_logits: Sequence[Tensor]) -> list[Tensor]:
        """σ(c)·σ(r) from what ``forward`` returns, L levels (B, C, H_l, W_l); C + 1 with ``legacy_background``."""
        quality = self.reg_conf(list(box_logits), self._scales()).sigmoid()
        parts = quality.split([level.shape[2] * level.shape[3] for level in class_logits], dim=1)
        return [
            level.sigmoid() * part.view(len(level), 1, *level.shape[2:])
            for level, part in zip(class_logits, parts, strict=True)
        ]

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The three weighted losses of a batch, one number each (mmdet: one a level), by mmdet's names."""
        predictor, scales = self._predictor(), self._scales()
        options = {"weight_floor": self.weight_floor, "scales": scales, "predictor": predictor}
        return fused.losses(self, *args, **kwargs, **options)[0]

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        score_factors: None = None,
        batch_img_metas: list[dict] | None = None,
        cfg: Any = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """Detections of each image, best first; arguments as mmdet's."""
        cfg = self.test_cfg if cfg is None else cfg
        pre_topk, score_thr = cfg.get("nms_pre", -1), cfg.get("score_thr", 0.0)
        decoded = decode(
            cls_scores,
            bbox_preds,
            image_sizes=[tuple(meta["img_shape"][:2]) for meta in batch_img_metas],
            scale_factors=[tuple(meta["scale_factor"][:2]) for meta in batch_img_metas] if rescale else None,
            pre_topk=pre_topk if pre_topk > 0 else sum(level.shape[2] * level.shape[3] for level in cls_scores),
            score_thr=score_thr,
            legacy_background=self.legacy_background,
            scales=self._scales(),
            predictor=self._predictor(),
            projection=self.integral.project,
            **fused.grid_of(self),
        )
        smallest = cfg.get("min_bbox_size", -1)
        if smallest >= 0:
            large = ((decoded.boxes[..., 2:] - decoded.boxes[..., :2]) > smallest).all(-1, keepdim=True)
            decoded = decoded._replace(scores=torch.where(large, decoded.scores, 0.0))
        if with_nms and cfg.nms.get("type", "nms") == "nms" and set(cfg.nms) <= _PLAIN_NMS:
            most = cfg.get("max_per_img", -1)
            found = batched_nms(decoded, iou_thr=cfg.nms["iou_threshold"], max_detections=most if most > 0 else None)
            return [InstanceData(bboxes=boxes, scores=scores, labels=labels) for boxes, scores, labels, *_ in found]
        # Another kind of NMS: mmdet's own code; the boxes are rescaled already.
        candidates = self._candidates(decoded)
        return [
            self._bbox_post_process(results, cfg, rescale=False, with_nms=with_nms, img_meta=meta)
            for results, meta in zip(candidates, batch_img_metas, strict=True)
        ]

    def _candidates(self, decoded: Decoded) -> list[InstanceData]:
        """Every (box, class) of an image whose score is above the threshold."""
        found = []
        for boxes, scores in zip(decoded.boxes, decoded.scores, strict=True):
            rows, labels = (scores[:, : self.num_classes] > 0).nonzero(as_tuple=True)
            found.append(InstanceData(bboxes=boxes[rows], scores=scores[rows, labels], labels=labels))
        return found

    def _scales(self) -> Tensor:
        """(L,) the levels' factors."""
        return torch.stack([module.scale for module in self.scales])

    def _predictor(self) -> Predictor:
        first, _, second = self.reg_conf
        layers = (first.weight, first.bias, second.weight, second.bias)
        return Predictor(*layers, topk=self.reg_topk, mean=self.add_mean)


def _drop_background(head: GFLV2Head, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The authors' files have an unused background channel, the last one of C + 1."""
    for name in ("weight", "bias"):
        key = f"{prefix}gfl_cls.{name}"
        value = state_dict.get(key)
        if value is not None and not head.legacy_background and len(value) == head.num_classes + 1:
            state_dict[key] = value[:-1]


# The name in the authors' own configurations, unless a fork of mmdet has that head.
if "GFocalHead" not in MODELS.module_dict:
    MODELS.register_module(name="GFocalHead", module=GFLV2Head)
