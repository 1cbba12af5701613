"""What ``predict`` returns for one image: boxes, scores and labels, and the distribution behind each side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gflv2.extras import missing_package

if TYPE_CHECKING:
    import PIL.Image

# A side grows from its point towards smaller coordinates (left, top) or larger ones (right, bottom).
_DIRECTION = torch.tensor([-1.0, -1.0, 1.0, 1.0])


@dataclass(eq=False, repr=False)
class Result:
    """Detections of one image, best score first, on the CPU.

    Attributes:
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels of the original image (after its EXIF rotation), clipped to it.
        scores: (N,) float32, the joint score of class and localisation quality.
        labels: (N,) int64, index into ``class_names``.
        class_names: the names of all classes.
        image: (H, W, 3) uint8 RGB, the original image.
        path: the file that the image came from; None for an image given in memory.
        distributions: (N, 4, R) float32 probabilities over the R bins of the sides left, top, right, bottom; None for a
            model without distributions.
        projection: (R,) float32, the distance that each bin stands for, in strides.
        points: (N, 2) float32, the feature point (x, y) that each box was predicted at, in original pixels.
        strides: (N, 2) float32, the stride of that point's level in original pixels, along x and y.
        levels: (N,) int64, the index of that level.
        category_ids: of each class, as in the annotations that the model was trained on.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    image: Any = field(repr=False)
    path: Path | None = None
    distributions: Tensor | None = None
    projection: Tensor | None = None
    points: Tensor | None = None
    strides: Tensor | None = None
    levels: Tensor | None = None
    category_ids: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original image."""
        return self.image.shape[0], self.image.shape[1]

    def bin_positions(self) -> Tensor:
        """(N, 4, R): where each bin puts its side in original pixels, x for left and right, y for top and bottom."""
        self._need_distributions("bin_positions")
        points, strides = self.points[:, [0, 1, 0, 1]], self.strides[:, [0, 1, 0, 1]]
        return points[..., None] + (_DIRECTION * strides)[..., None] * self.projection

    def spread(self) -> Tensor:
        """(N, 4): standard deviation of each side's position in original pixels; large where it is ambiguous."""
        position = self.bin_positions()
        mean = (self.distributions * position).sum(-1, keepdim=True)
        return (self.distributions * (position - mean).square()).sum(-1).sqrt()

    def entropy(self) -> Tensor:
        """(N, 4): entropy of each side's distribution in bits, from 0 (one bin) to log2 R (all bins alike)."""
        self._need_distributions("entropy")
        return torch.special.entr(self.distributions).sum(-1) / torch.log(torch.tensor(2.0))

    def plot(self, threshold: float = 0.3, distributions: bool | int = False) -> PIL.Image.Image:
        """The image with the boxes that score at least ``threshold``.

        A class whose name no installed font can draw is called by its number, which is said once. An image of more than
        50 million pixels is drawn smaller.

        Args:
            distributions: False; True: also a panel that shows the four distributions of the best box; an index:
                of that box, whatever its score.
        """
        from gflv2.data.fonts import drawable
        from gflv2.engine import plot

        names = drawable(self.class_names)
        arrays = (tensor.double().numpy() for tensor in (self.boxes, self.scores, self.labels))
        drawing = plot.Drawing(self.image, *arrays, [names[label] for label in self.labels.tolist()])
        if distributions is False:
            return plot.plot_boxes(drawing, threshold)
        self._need_distributions("distributions")
        count, index = len(self), 0 if distributions is True else distributions
        if not count:
            return plot.plot_boxes(drawing, threshold)
        if not -count <= index < count:
            raise IndexError(f"distributions: expected the index of one of {count} detections, got {index}")
        index %= count
        bins = (self.points, self.bin_positions(), self.distributions)
        point, positions, probabilities = (tensor[index].double().numpy() for tensor in bins)
        sides = plot.sides_of(point, positions, probabilities)
        return plot.plot_distributions(drawing, index, point, sides, threshold)

    def save(self, path: str | Path, threshold: float = 0.3, distributions: bool | int = False) -> Path:
        """Write ``plot(threshold, distributions)`` to ``path`` (its suffix gives the format) and return the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.plot(threshold, distributions).save(
            path, **({"quality": 92} if path.suffix.lower() in (".jpg", ".jpeg") else {})
        )
        return path

    def to_coco(self, image_id: int = 0, category_ids: list[int] | None = None) -> list[dict[str, Any]]:
        """The detections as COCO result records: ``bbox`` is [x, y, width, height].

        Args:
            category_ids: the category id of each class; None: the model's, else 1, 2, 3, ….
        """
        ids = category_ids if category_ids is not None else self.category_ids
        ids = list(ids) if ids is not None else list(range(1, len(self.class_names) + 1))
        if len(ids) != len(self.class_names):
            raise ValueError(
                f"category_ids: expected one id for each of the {len(self.class_names)} classes, got {len(ids)}"
            )
        records = []
        for (x1, y1, x2, y2), score, label in zip(
            self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
        ):
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            records.append({"image_id": image_id, "category_id": ids[label], "bbox": box, "score": round(score, 5)})
        return records

    def to_supervision(self) -> Any:
        """The detections as a ``supervision.Detections``: xyxy, confidence, class_id, and the names as ``class_name``.

        Raises:
            ModuleNotFoundError: the package ``supervision`` is not installed.
        """
        try:
            from supervision import Detections
        except ModuleNotFoundError as error:
            raise missing_package(error, "Result.to_supervision") from error
        return Detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=self.labels.numpy().copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def __repr__(self) -> str:
        height, width = self.size
        source = f", {self.path}" if self.path is not None else ""
        lines = [f"Result({len(self)} detection{'' if len(self) == 1 else 's'}, {width}×{height}{source})"]
        if len(self):
            names = self.names
            column = max(5, *(len(name) for name in names[:20]))
            spread = self.spread() if self.distributions is not None else None
            lines.append(
                f"  {'#':>3}  {'class':<{column}}  score  {'x1':>7} {'y1':>7} {'x2':>7} {'y2':>7}"
                + ("   ± left, top, right, bottom [px]" if spread is not None else "")
            )
            for row in range(min(len(self), 20)):
                box = " ".join(f"{value:7.1f}" for value in self.boxes[row].tolist())
                line = f"  {row:>3}  {names[row]:<{column}}  {self.scores[row].item():.3f}  {box}"
                lines.append(
                    line + ("" if spread is None else "   " + " ".join(f"{v:5.1f}" for v in spread[row].tolist()))
                )
            if len(self) > 20:
                lines.append(f"  … and {len(self) - 20} more")
        return "\n".join(lines)

    def _need_distributions(self, what: str) -> None:
        if self.distributions is None:
            raise ValueError(f"{what}: this model predicts no distributions (its head regresses distances directly)")
