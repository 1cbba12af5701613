"""Pictures of detections: the boxes on the image, and the four learned distributions of one box. Arrays go in.

Drawn by matplotlib without pyplot, so that no global state, window or thread is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from gflv2.data.fonts import families_of
from gflv2.data.label_places import label_places
from gflv2.extras import missing_package
from gflv2.sides import SIDES

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ModuleNotFoundError as error:
    raise missing_package(error, "drawing a result") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PIXELS = 50_000_000  # of a picture: drawing takes some thirty bytes a pixel
LONGEST_SIDE = 65_000  # pixels; a JPEG holds 65,500

_DPI = 100
_POINTS = 72 / _DPI  # of a pixel: matplotlib measures lines and text in points
_PAD = 2.0  # pixels round the text of a label
_CLASS_COLORS = (
    "#e8590c #1971c2 #2f9e44 #9c36b5 #e03131 #0c8599 #f08c00 #6741d9 #c2255c #5c940d #1864ab #a61e4d".split()
)
# From a sharp side (one or two bins) to an ambiguous one (the probability lies on many bins).
_SHARPNESS = LinearSegmentedColormap.from_list("sharpness", ["#0b7285", "#12b886", "#f59f00", "#e03131"])
# Entropies in bits at the ends of that scale. One bit, two neighbouring bins alike, is as sharp as a side between two
# bins can be; 2.5 bits are as much as 5.7 equal bins.
_SHARP, _AMBIGUOUS = 1.0, 2.5
_INK = "#212529"
_FAINT = "#868e96"
# Bins below this share of the probability neither widen the window nor the charts.
_NEGLIGIBLE = 0.02


class Drawing(NamedTuple):
    """An image and the boxes on it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4), x1, y1, x2, y2 in pixels.
        scores: (N,). labels: (N,) class indices, which choose the colours. names: N class names.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]


class Side:
    """One side of one box: its bins in image pixels, their probabilities, and what they amount to."""

    def __init__(self, name: str, point: float, positions: np.ndarray, probabilities: np.ndarray) -> None:
        self.name = name
        self.horizontal = name in ("left", "right")  # the distribution lies along x
        self.positions = positions
        self.distances = np.abs(positions - point)
        self.probabilities = probabilities
        edges = (positions[1:] + positions[:-1]) / 2
        first, last = 1.5 * positions[0] - positions[1] / 2, 1.5 * positions[-1] - positions[-2] / 2
        edges = np.concatenate([[first], edges, [last]])
        self.low, self.width = np.minimum(edges[1:], edges[:-1]), np.abs(np.diff(edges))
        self.mean = float((probabilities * positions).sum())
        self.spread = float(np.sqrt((probabilities * (positions - self.mean) ** 2).sum()))
        safe = np.clip(probabilities, 1e-12, 1)
        self.entropy = float(-(probabilities * np.log2(safe)).sum())
        self.color = _SHARPNESS(float(np.clip((self.entropy - _SHARP) / (_AMBIGUOUS - _SHARP), 0, 1)))


def sides_of(point: np.ndarray, positions: np.ndarray, probabilities: np.ndarray) -> list[Side]:
    """The four sides of one box.

    Args:
        point: (2,) the feature point (x, y) that the box was predicted at.
        positions, probabilities: (4, R), of the bins: where in the image, and how likely.
    """
    return [Side(name, point[side % 2], positions[side], probabilities[side]) for side, name in enumerate(SIDES)]


def plot_boxes(drawing: Drawing, threshold: float = 0.3) -> Image.Image:
    """The image with the boxes of score ≥ ``threshold``, each with its class and score.

    At its own size up to ``MOST_PIXELS`` and ``LONGEST_SIDE``; above, reduced to that. No text covers another
    one: the best boxes choose first, and one whose text finds no place has none (see ``gflv2.data.label_places``).
    """
    return _render(_figure_of_boxes(drawing, threshold))


def _figure_of_boxes(drawing: Drawing, threshold: float) -> Figure:
    pixels = _reduced(drawing.image)
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    _show_image(axes, pixels, drawing.image.shape)
    line = max(1.5, 0.003 * max(height, width))
    font = min(max(9.0, 0.02 * max(height, width)), 40.0)
    shown = _shown(drawing, threshold)
    for index in reversed(shown):  # the best last
        _draw_box(axes, drawing, index, line)
    _draw_labels(axes, drawing, shown, [font] * len(shown))
    return figure


def _reduced(image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) within the limits of a picture."""
    height, width = image.shape[:2]
    scale = min(1.0, (MOST_PIXELS / (height * width)) ** 0.5, LONGEST_SIDE / max(height, width))
    if scale == 1:
        return image
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def plot_distributions(
    drawing: Drawing, index: int, point: np.ndarray, sides: list[Side], threshold: float = 0.3
) -> Image.Image:
    """One box with the distribution that each of its sides was read from.

    Left, the whole image with the boxes of score ≥ ``threshold``. Right, the surroundings of box ``index``: above
    it the distributions of its left and right side over the image's x, beside it those of top and bottom over y;
    the same probabilities shade the image along the side. Below, one chart a side: probability over the distance
    from the feature point (the cross) in pixels. The colour tells the entropy: blue-green a sharp side, red an
    ambiguous one.
    """
    box = drawing.boxes[index]
    window = _window(box, sides)
    layout = _layout(drawing.image.shape[:2], window)
    pixels = _reduced(drawing.image)
    _show_image(layout.image, pixels, drawing.image.shape)
    others = [other for other in _shown(drawing, threshold) if other != index]
    for other in reversed(others):
        _draw_box(layout.image, drawing, other, 1.5)
    _draw_box(layout.image, drawing, index, 3.0)
    _draw_labels(layout.image, drawing, [index, *others], [12.0] + [10.0] * len(others))

    _show_image(layout.zoom, pixels, drawing.image.shape)
    _draw_zoom(layout.zoom, box, point, sides, window)
    _draw_margins(layout, sides, window)
    layout.above.set_title(
        f"{drawing.names[index]} {drawing.scores[index]:.2f}: where the model puts each side",
        fontsize=11,
        color=_INK,
        loc="left",
        family=families_of(drawing.names[index]),
        parse_math=False,
    )
    for axes, side in zip(layout.charts, sides, strict=True):
        _draw_chart(axes, side, sides)
    _draw_legend(layout.figure)
    return _render(layout.figure)


def _window(box: np.ndarray, sides: list[Side]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of the part of the picture plane that holds the box and every bin that matters."""
    x1, y1, x2, y2 = box
    for side in sides:
        seen = side.probabilities > _NEGLIGIBLE
        low, high = float(side.low[seen].min()), float((side.low + side.width)[seen].max())
        if side.horizontal:
            x1, x2 = min(x1, low), max(x2, high)
        else:
            y1, y2 = min(y1, low), max(y2, high)
    margin = 0.12 * max(x2 - x1, y2 - y1)
    x1, y1, x2, y2 = x1 - margin, y1 - margin, x2 + margin, y2 + margin
    # Keep the aspect within what the layout has room for.
    width, height = x2 - x1, y2 - y1
    grow_x, grow_y = max(0.0, 0.7 * height - width) / 2, max(0.0, width / 1.6 - height) / 2
    return x1 - grow_x, y1 - grow_y, x2 + grow_x, y2 + grow_y


class _Layout(NamedTuple):
    figure: Figure
    image: Axes
    zoom: Axes
    above: Axes  # shares the zoom's x
    beside: Axes  # shares the zoom's y
    charts: list[Axes]


def _layout(size: tuple[int, int], window: tuple[float, float, float, float]) -> _Layout:
    """A figure as wide as the picture and the zoom need. All lengths are inches, from the lower left corner."""
    border, gap, margin, bottom = 0.35, 0.08, 0.95, 2.65
    total_height = 8.0
    tall = total_height - 0.45 - bottom
    image_w, image_h = _fit(size[1] / size[0], 6.6, tall)
    zoom_w, zoom_h = _fit((window[2] - window[0]) / (window[3] - window[1]), 5.6, tall - margin - gap)
    zoom_x = max(border + image_w + 0.5, 11.0 - border - margin - gap - zoom_w)
    total_width = zoom_x + zoom_w + gap + margin + border
    figure = Figure(figsize=(total_width, total_height), dpi=_DPI, facecolor="white")

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / total_width, y / total_height, w / total_width, h / total_height))

    chart_w = (total_width - 0.6 - border - 3 * 0.35) / 4
    return _Layout(
        figure,
        # Centred in the space to the left of the zoom; vertically, on zoom and margin together.
        place(
            (zoom_x - 0.5 + border - image_w) / 2,
            max(bottom + (zoom_h + gap + margin - image_h) / 2, bottom),
            image_w,
            image_h,
        ),
        place(zoom_x, bottom, zoom_w, zoom_h),
        place(zoom_x, bottom + zoom_h + gap, zoom_w, margin),
        place(zoom_x + zoom_w + gap, bottom, margin, zoom_h),
        [place(0.6 + k * (chart_w + 0.35), 0.55, chart_w, 1.35) for k in range(4)],
    )


def _fit(aspect: float, width: float, height: float) -> tuple[float, float]:
    """The largest width and height of this aspect within the given ones."""
    return (width, width / aspect) if aspect > width / height else (height * aspect, height)


def _draw_zoom(
    axes: Axes, box: np.ndarray, point: np.ndarray, sides: list[Side], window: tuple[float, float, float, float]
) -> None:
    x1, y1, x2, y2 = box
    axes.set(xlim=(window[0], window[2]), ylim=(window[3], window[1]), facecolor="#e9ecef")
    # One line for each bin, as opaque as it is probable: a sharp side is one or two lines, an ambiguous a fan.
    for side in sides:
        draw = axes.vlines if side.horizontal else axes.hlines
        ends = (y1, y2) if side.horizontal else (x1, x2)
        for position, share in zip(side.positions, side.probabilities / side.probabilities.max(), strict=True):
            if share > _NEGLIGIBLE:
                draw(position, *ends, color=side.color, linewidth=3.0, alpha=float(0.15 + 0.85 * share))
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=2.6))
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_INK, linewidth=1.2))
    x, y = point
    axes.plot([x], [y], marker="+", markersize=13, markeredgewidth=3.6, color="white", clip_on=True)
    axes.plot([x], [y], marker="+", markersize=12, markeredgewidth=1.6, color=_INK, clip_on=True)


def _draw_margins(layout: _Layout, sides: list[Side], window: tuple) -> None:
    above, beside = layout.above, layout.beside
    left, top, right, bottom = sides
    above.set(xlim=(window[0], window[2]), ylim=(0, 1.18 * max(left.probabilities.max(), right.probabilities.max())))
    beside.set(ylim=(window[3], window[1]), xlim=(0, 1.18 * max(top.probabilities.max(), bottom.probabilities.max())))
    for side in sides:
        bars, line = (above.bar, above.axvline) if side.horizontal else (beside.barh, beside.axhline)
        style = {"color": side.color, "edgecolor": "white", "linewidth": 0.6}
        bars(side.low, side.probabilities, side.width, align="edge", **style)
        line(side.mean, color=_INK, linewidth=1.2)
    for axes, edge in ((above, "bottom"), (beside, "left")):
        axes.set(xticks=[], yticks=[])
        for name, spine in axes.spines.items():
            spine.set_visible(name == edge)
            spine.set_color(_FAINT)


def _draw_chart(axes: Axes, side: Side, sides: list[Side]) -> None:
    order = np.argsort(side.distances)
    distance, share = side.distances[order], side.probabilities[order]
    axes.bar(distance, share, side.width[order] * 0.9, color=side.color)
    mean = float((side.probabilities * side.distances).sum())
    axes.axvline(mean, color=_INK, linewidth=1.2, linestyle=(0, (4, 2)))
    seen = [float((s.distances + s.width)[s.probabilities > _NEGLIGIBLE].max()) for s in sides]
    axes.set(
        xlim=(distance[0] - side.width[order][0] / 2, max(seen)),
        ylim=(0, max(0.5, 1.15 * max(s.probabilities.max() for s in sides))),
    )
    axes.set_title(f"{side.name}  {mean:.0f} ± {side.spread:.0f} px", fontsize=11, color=_INK, loc="left")
    axes.set_title(f"≈ {2**side.entropy:.1f} bins", fontsize=10, color=side.color, loc="right")
    axes.set_xlabel("distance from the point [px]", fontsize=8, color=_INK)
    if side is sides[0]:
        axes.set_ylabel("probability", fontsize=8, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK, length=2)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_FAINT)


def _draw_legend(figure: Figure) -> None:
    """The colour scale of a side's entropy."""
    inches_x, inches_y = figure.get_size_inches()
    left, width = inches_x - 2.75, 1.3
    axes = figure.add_axes((left / inches_x, 2.3 / inches_y, width / inches_x, 0.12 / inches_y))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=_SHARPNESS, aspect="auto")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for x, align, text in ((-0.06, "right", "sharp side"), (1.06, "left", "ambiguous side")):
        axes.text(x, 0.5, text, ha=align, va="center", fontsize=9, color=_INK, transform=axes.transAxes)


def _shown(drawing: Drawing, threshold: float) -> list[int]:
    """The boxes to draw, the best first."""
    order = np.argsort(-drawing.scores, kind="stable")
    return order[drawing.scores[order] >= threshold].tolist()


def _show_image(axes: Axes, image: np.ndarray, shape: tuple[int, ...]) -> None:
    """``shape``: (height, width, …) of the original, whose pixels are the axes' coordinates."""
    height, width = shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="antialiased", aspect="auto")
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _color_of(drawing: Drawing, index: int) -> str:
    return _CLASS_COLORS[int(drawing.labels[index]) % len(_CLASS_COLORS)]


def _draw_box(axes: Axes, drawing: Drawing, index: int, line: float) -> None:
    """``line`` in pixels of the canvas."""
    x1, y1, x2, y2 = drawing.boxes[index]
    frame = {"fill": False, "joinstyle": "miter"}
    for color, width in (("white", line + 1.4), (_color_of(drawing, index), line)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, edgecolor=color, linewidth=width * _POINTS, **frame))


def _draw_labels(axes: Axes, drawing: Drawing, indices: list[int], fonts: list[float]) -> None:
    """Class and score of the boxes; the first choose their places first. ``fonts`` in pixels of the canvas."""
    texts = [
        axes.text(
            0,
            0,
            f"{drawing.names[index]} {drawing.scores[index]:.2f}",
            va="bottom",
            fontsize=font * _POINTS,
            family=families_of(drawing.names[index]),
            parse_math=False,
            color="white",
            bbox={"facecolor": _color_of(drawing, index), "edgecolor": "none", "pad": _PAD * _POINTS},
            clip_on=True,
        )
        for index, font in zip(indices, fonts, strict=True)
    ]
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([(extent.width, extent.height) for extent in extents]).reshape(-1, 2) + 2 * _PAD
    # Places are found in pixels of the canvas; the axes count in those of the image.
    canvas = axes.get_window_extent()
    height, width = drawing.image.shape[:2]
    scale = np.array([canvas.width / width, canvas.height / height])
    places = label_places(drawing.boxes[indices] * np.tile(scale, 2), sizes, (canvas.width, canvas.height))
    for text, (x, y), label in zip(texts, places, sizes, strict=True):
        if np.isnan(x):
            text.remove()
        else:
            text.set_position(np.array([x + _PAD, y + label[1] - _PAD]) / scale)


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
