"""Video files and cameras: boxes in every frame, by PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import contextlib
import csv
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gflv2.engine.predict import predict
from gflv2.engine.results import Result
from gflv2.extras import missing_package
from gflv2.ops.checks import bad_value, check_number

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
CSV_COLUMNS = ("frame", "seconds", "class", "score", "x1", "y1", "x2", "y2")
_CAMERA = re.compile(r"camera(?::(\d+))?")


@dataclass
class VideoReport:
    """What ``predict_video`` did.

    Attributes:
        csv: a line for each detection. video: with the boxes, or None.
        frames, detections: their numbers. seconds: that all of it took.
        interrupted: ended by Ctrl-C, which is how a camera ends.
    """

    csv: Path
    video: Path | None
    frames: int
    detections: int
    seconds: float
    interrupted: bool = False

    def __str__(self) -> str:
        rate = self.frames / self.seconds if self.seconds else 0.0
        first = f"{self.detections} detections in {self.frames} frames, {rate:.1f} frames per second: {self.csv}"
        return first if self.video is None else f"{first}\nwith boxes: {self.video}"


def is_video(source: str | Path) -> bool:
    """Whether ``predict_video`` takes it: a file with a video's suffix, ``camera`` or ``camera:NUMBER``."""
    return _CAMERA.fullmatch(str(source)) is not None or Path(source).suffix.lower() in SUFFIXES


def predict_video(
    model: Any,
    source: str | Path,
    output: str | Path,
    *,
    threshold: float = 0.3,
    pictures: bool = True,
    max_frames: int | None = None,
    batch_size: int = 1,
    progress: bool = True,
    **options: Any,
) -> VideoReport:
    """Predict the frames of a video or of a camera, as they come.

    Args:
        model: as ``gflv2.engine.predict.predict``, which also has the further ``options``.
        source: see ``is_video``. A camera runs until Ctrl-C or ``max_frames``.
        output: folder, made where missing: ``NAME.csv`` (``CSV_COLUMNS``, pixels of the frame) and ``NAME.mp4`` with
            the boxes that score at least ``threshold``, at the rate of the source.
        pictures: False writes the CSV file only.
        max_frames: stop after so many.
        progress: show a bar, with frames per second.

    Raises:
        ModuleNotFoundError: PyAV is not installed. FileNotFoundError, ValueError: no such file or camera, no video in
            it, or an output that is the source.
    """
    from tqdm import tqdm

    check_number(threshold, "threshold", least=0, most=1)
    output, name = Path(output), "camera" if _CAMERA.fullmatch(str(source)) else Path(source).stem
    csv_path, video_path = output / f"{name}.csv", output / f"{name}.mp4"
    if pictures and video_path.exists() and Path(source).exists() and video_path.samefile(source):
        raise ValueError(f"output: the video with boxes would overwrite {str(source)!r}; name another folder")
    found = frames = 0
    interrupted = False
    with contextlib.ExitStack() as stack:
        rate, total, images = stack.enter_context(_opened(source))
        output.mkdir(parents=True, exist_ok=True)
        table = csv.writer(stack.enter_context(open(csv_path, "w", newline="", encoding="utf-8")), lineterminator="\n")
        table.writerow(CSV_COLUMNS)
        film = stack.enter_context(_Film(video_path, rate)) if pictures else None
        total = max_frames if total is None else min(total, max_frames or total)
        bar = stack.enter_context(tqdm(total=total, unit="frame", disable=not progress))
        images, started = islice(images, max_frames), time.monotonic()
        try:
            while part := list(islice(images, batch_size)):
                results = predict(model, [image for _, image in part], batch_size=batch_size, **options)
                for (seconds, _), result in zip(part, results, strict=True):
                    table.writerows(_lines(frames, seconds, result))
                    if film is not None:
                        film.add(np.asarray(result.plot(threshold).convert("RGB")))
                    frames, found = frames + 1, found + len(result)
                bar.update(len(part))
        except KeyboardInterrupt:
            interrupted = True
        took = time.monotonic() - started
    return VideoReport(csv_path, video_path if pictures and frames else None, frames, found, took, interrupted)


def _lines(frame: int, seconds: float, result: Result) -> Iterator[list[Any]]:
    for box, score, name in zip(result.boxes.tolist(), result.scores.tolist(), result.names, strict=True):
        yield [frame, f"{seconds:.3f}", name, f"{score:.5f}", *(f"{side:.2f}" for side in box)]


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise missing_package(error, "Predicting a video") from error
    return av


def _camera(number: int) -> tuple[str, str]:
    """FFmpeg's name of a camera, and of what reads it."""
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if not sys.platform.startswith("linux"):
        bad_value("source", "a video file: cameras are read on Linux and macOS", f"camera:{number}")
    return f"/dev/video{number}", "v4l2"


@contextlib.contextmanager
def _opened(source: str | Path) -> Iterator[tuple[Fraction, int | None, Iterator[tuple[float, np.ndarray]]]]:
    """Rate, number of frames (None: not known), and the frames as (seconds, (H, W, 3) uint8 RGB)."""
    av = _av()
    camera = _CAMERA.fullmatch(str(source))
    name, form = _camera(int(camera[1] or 0)) if camera else (str(source), None)
    try:
        container = av.open(name, format=form)
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: no such {'camera: ' + name if camera else 'file'}") from None
    except (OSError, ValueError) as error:  # av's errors are both
        raise ValueError(f"{source}: not a video that can be read: {error}") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{source}: there is no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield Fraction(stream.average_rate or 25), stream.frames or None, _decoded(container, stream, source)


def _decoded(container: Any, stream: Any, source: Any) -> Iterator[tuple[float, np.ndarray]]:
    try:
        for frame in container.decode(stream):
            yield float(frame.time or 0.0), frame.to_ndarray(format="rgb24")
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: damaged: {error}") from error


class _Film:
    """An MP4 file of frames of one size, the first one's; H.264 where FFmpeg was built with it, else MPEG-4."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._av, self._path, self._rate = _av(), path, rate
        self._container = self._stream = None

    def __enter__(self) -> _Film:
        return self

    def add(self, image: np.ndarray) -> None:
        if self._container is None:
            self._container = self._av.open(str(self._path), "w")
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self._rate)
            height, width = image.shape[:2]
            self._stream.height, self._stream.width = height - height % 2, width - width % 2  # of 4:2:0 colours
            self._stream.pix_fmt = "yuv420p"
        height, width = self._stream.height, self._stream.width
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if (frame.height, frame.width) != (height, width):
            frame = frame.reformat(width=width, height=height)
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
