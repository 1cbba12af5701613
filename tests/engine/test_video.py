"""Videos: a line for each detection, a film with the boxes, and what is no video."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from gflv2.cli import main
from gflv2.engine import video
from gflv2.engine.predict import predict
from gflv2.engine.video import is_video, predict_video
from tests.engine.test_predict import make_model

av = pytest.importorskip("av", reason="PyAV is not installed")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of 90×121 pixels, 10 a second, the same picture moved to the right."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    picture = np.random.default_rng(0).integers(0, 255, (9, 15, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)  # without losses
        stream.height, stream.width, stream.pix_fmt = 90, 121, "bgr0"
        for shift in range(5):
            image = np.ascontiguousarray(picture[:, 5 * shift : 5 * shift + 121])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_frame_is_predicted(model, clip: Path, tmp_path: Path, batch_size: int) -> None:
    report = predict_video(model, clip, tmp_path, batch_size=batch_size, score_thr=0.1, progress=False)
    expected = [predict(model, frame, score_thr=0.1) for frame in frames_of(clip)]
    rows = list(csv.DictReader(report.csv.read_text().splitlines()))
    assert report.frames == 5 and report.detections == len(rows) == sum(map(len, expected)) > 5
    assert [int(row["frame"]) for row in rows] == [number for number, e in enumerate(expected) for _ in range(len(e))]
    assert {float(row["seconds"]) for row in rows if row["frame"] == "3"} == {0.3}
    boxes = torch.tensor([[float(row[side]) for side in ("x1", "y1", "x2", "y2")] for row in rows])
    torch.testing.assert_close(boxes, torch.cat([e.boxes for e in expected]), rtol=0, atol=0.01)
    film = frames_of(report.video)
    assert len(film) == 5 and film[0].shape[0] % 2 == film[0].shape[1] % 2 == 0
    assert "5 frames, " in str(report) and "frames per second" in str(report)


def test_the_command_line(model, clip: Path, tmp_path: Path, capsys) -> None:
    weights = str(model.save(tmp_path / "model.pt"))
    line = ["predict", str(clip), "--weights", weights, "--output", str(tmp_path), "--no-progress", "--no-pictures"]
    assert main([*line, "--max-frames", "2"]) == 0
    assert "in 2 frames, " in capsys.readouterr().out and not (tmp_path / "clip.mp4").exists()
    assert main([*line, "--distributions"]) == 2
    assert "a video or camera stands alone" in capsys.readouterr().err
    assert main(["predict", "camera:7", *line[2:]]) == 2
    assert "camera:7: no such camera: /dev/video7" in capsys.readouterr().err
    assert main(["predict", "missing.mp4", *line[2:]]) == 2
    assert "missing.mp4: no such file" in capsys.readouterr().err


def test_a_camera_ends_by_ctrl_c_and_leaves_what_it_has(model, tmp_path: Path, monkeypatch) -> None:
    """FFmpeg's generated picture, which has no end, in place of a camera."""
    monkeypatch.setattr(video, "_camera", lambda number: (f"testsrc=size=64x48:rate={number}", "lavfi"))
    seen = []

    def interrupted(*arguments, **options):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(arguments[1])
        return predict(*arguments, **options)

    monkeypatch.setattr(video, "predict", interrupted)
    report = predict_video(model, "camera:5", tmp_path, progress=False)
    assert report.interrupted and report.frames == 3 and len(frames_of(report.video)) == 3


def test_what_is_no_video(model, clip: Path, tmp_path: Path) -> None:
    assert is_video("a/B.MP4") and is_video("camera") and is_video("camera:2")
    assert not any(map(is_video, ("camera.jpg", "camera:x", "photo.png", "mp4")))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="text.mp4: not a video that can be read"):
        predict_video(model, tmp_path / "text.mp4", tmp_path / "found")
    same = tmp_path / "clip.mp4"
    same.write_bytes(clip.read_bytes())
    with pytest.raises(ValueError, match="would overwrite"):
        predict_video(model, same, tmp_path)
