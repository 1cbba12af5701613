"""The server of ``gflv2 view``: what it takes, what it refuses, and that it shows what the model reads."""

from __future__ import annotations

import base64
import importlib
import io
import json
import socket
import sys
import threading
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from gflv2.cli import main
from gflv2.data import collate
from gflv2.data.transforms import preprocess
from gflv2.engine.image_sources import read_source
from gflv2.engine.predict import predict
from gflv2.engine.view import make_app, view
from gflv2.engine.view.answer import MOST_PIXELS
from gflv2.engine.view.server import HOST, serve
from gflv2.ops.levels import flatten_levels
from tests.engine.looking import NAMES, picture, small_model

OURS = {"X-Gflv2": "view"}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def client(model):
    return make_app(model, most_megabytes=1).test_client()


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def refusal(response, code: int) -> str:
    """The one line of a refusal."""
    assert response.status_code == code and response.is_json
    text = response.get_json()["error"]
    assert text and "\n" not in text and "Traceback" not in text
    return text


# ---- what it shows ----------------------------------------------------------------


def test_the_boxes_are_those_of_predict(client, model):
    answer = client.post("/detect", data=encoded(picture()), headers=OURS).get_json()
    expected = predict(model, picture())
    found = answer["detections"]
    assert (answer["width"], answer["height"]) == (180, 120) and len(found) == len(expected) > 3
    assert [row["name"] for row in found] == expected.names
    np.testing.assert_allclose([row["box"] for row in found], expected.boxes, atol=1e-4)
    np.testing.assert_allclose([row["score"] for row in found], expected.scores, atol=1e-6)
    shares = np.array([[side["probabilities"] for side in row["sides"]] for row in found])
    np.testing.assert_allclose(shares, expected.distributions, atol=1e-6)
    for number, row in enumerate(found):
        for side, values in enumerate(row["sides"]):
            top = np.sort(shares[number, side])[::-1][:4]
            np.testing.assert_allclose(values["top"], top, atol=1e-6)
            assert values["mean"] == pytest.approx(top.mean(), abs=1e-6)
            assert values["expectation"] == pytest.approx(
                np.dot(values["positions"], values["probabilities"]), abs=1e-3
            )
    shown = Image.open(io.BytesIO(base64.b64decode(answer["picture"].partition(",")[2])))
    assert shown.size == (180, 120)


@pytest.mark.parametrize("head", [{}, {"add_variance": True, "reg_topk": 8}, {"add_topk": False}])
def test_the_quality_is_what_divides_the_score_from_the_class(head):
    model = small_model(**head)
    answer = make_app(model).test_client().post("/detect", data=encoded(picture()), headers=OURS).get_json()
    image, _ = read_source(picture())
    batch = collate([preprocess(image, model.config.data)], model.config.data.pad_divisor)
    with torch.inference_mode():
        output = model(batch.images)
        (found,) = model.bbox_head.detect(output, batch.image_sizes, batch.scale_factors, **model.config.test.options())
    classes = flatten_levels(output.class_logits)[0, found.points, found.labels].sigmoid()
    assert len(found.scores) == len(answer["detections"])
    quality = [row["quality"] for row in answer["detections"]]
    np.testing.assert_allclose(quality, found.scores / classes, rtol=1e-4)


@pytest.mark.parametrize(
    "head, note, has_sides",
    [
        ({}, "", True),
        ({"quality": None}, "no predictor", True),
        ({"composition": "composed"}, "no quality of its own", True),
        ({"quality": "both"}, "convolutional features", True),
        ({"kind": "atss", "quality": None}, "no distributions", False),
    ],
)
def test_every_kind_of_head_says_what_it_has(head, note, has_sides):
    client = make_app(small_model(**head)).test_client()
    about = client.get("/about").get_json()
    assert note in about["note"] and bool(note) == bool(about["note"]) and about["classes"] == 2
    found = client.post("/detect", data=encoded(picture()), headers=OURS).get_json()["detections"]
    assert found and all(("sides" in row) == has_sides for row in found)
    assert all((row.get("quality") is not None) == (head == {}) for row in found)


def test_a_picture_is_turned_upright(client, model):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(picture(), 1)
    answer = client.post("/detect", data=encoded(stored, "PNG", exif=exif), headers=OURS).get_json()
    assert (answer["width"], answer["height"]) == (180, 120)
    np.testing.assert_allclose([row["box"] for row in answer["detections"]], predict(model, picture()).boxes, atol=1e-4)


def test_no_detection_is_an_answer(model):
    client = make_app(small_model()).test_client()
    bare = small_model()
    bare.config.test.score_thr = 0.9999
    answer = make_app(bare).test_client().post("/detect", data=encoded(picture()), headers=OURS)
    assert answer.status_code == 200 and answer.get_json()["detections"] == []
    assert client.get("/about").status_code == 200


# ---- what it refuses ----------------------------------------------------------------


def test_files_that_are_no_pictures(client):
    for body in (b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        text = refusal(client.post("/detect", data=body, headers=OURS), 400)
        assert "empty" in text if not body else "not a picture" in text
    damaged = encoded(picture(400, 400), "JPEG")
    assert "cannot be read" in refusal(client.post("/detect", data=damaged[: len(damaged) // 2], headers=OURS), 400)


def test_a_large_file_and_a_picture_of_many_pixels(client):
    assert "at most 1 MB" in refusal(client.post("/detect", data=bytes(2**20 + 1), headers=OURS), 413)
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    text = refusal(client.post("/detect", data=file.getvalue(), headers=OURS), 400)
    assert len(file.getvalue()) < 2**20 and str(MOST_PIXELS) in text and "8000 × 8000" in text


def test_pages_from_elsewhere(client):
    body = encoded(picture())
    assert "this page alone" in refusal(client.post("/detect", data=body), 403)
    # A name of elsewhere that leads to this machine (DNS rebinding).
    for path in ("/", "/about", "/page.js"):
        assert "localhost only" in refusal(client.get(path, headers={"Host": "example.org"}), 400)
    assert client.get("/about", headers={"Host": "localhost:8710"}).status_code == 200
    assert "Access-Control-Allow-Origin" not in client.options("/detect").headers


@pytest.mark.parametrize("path", ["/server.py", "/page/page.html", "/..%2fserver.py", "/static/x", "/detect"])
def test_nothing_else_is_served(client, path):
    refusal(client.get(path), 405 if path == "/detect" else 404)


def test_the_page_may_load_nothing_from_elsewhere(client):
    response = client.get("/about")
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/", "/page.js", "/page.css"):
        with client.get(path) as response:
            text = response.get_data(as_text=True)
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text


def test_an_unexpected_error_is_one_line(model, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("gflv2.engine.view.server.answer", fail)
    text = refusal(make_app(model).test_client().post("/detect", data=b"x", headers=OURS), 500)
    assert text == "RuntimeError: first line second line" and "a picture failed" in caplog.text


# ---- the server ----------------------------------------------------------------


def test_it_listens_on_this_machine_only(model):
    server = serve(make_app(model), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with urllib.request.urlopen(f"http://{HOST}:{server.port}/about", timeout=60) as response:
            assert json.load(response)["classes"] == len(NAMES)
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_view_says_where_and_ends_by_ctrl_c(model, capsys, monkeypatch):
    opened = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda address: opened.set())
    seen = []

    def interrupted(server, **_):
        seen.append(server.port)
        assert opened.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.HTTPServer.serve_forever", interrupted)
    view(model, port=0)
    said = capsys.readouterr().out
    assert f"http://127.0.0.1:{seen[0]}/" in said and said.endswith("ended\n")
    with socket.create_server((HOST, seen[0])):  # the port is free again
        pass


def test_a_port_that_cannot_be_used(model, capsys, tmp_path):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be used"):
            serve(make_app(model), port)
        model.save(tmp_path / "m.pt")
        assert main(["view", str(tmp_path / "m.pt"), "--port", str(port), "--no-browser", "--device", "cpu"]) == 2
        assert f"port {port}" in capsys.readouterr().err
    for wrong in (-1, 65536, True, "80"):
        with pytest.raises(ValueError, match="^port: expected"):
            serve(make_app(model), wrong)
    with pytest.raises(ValueError, match="^most_megabytes: expected"):
        make_app(model, most_megabytes=0)


def test_without_flask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flask", None)
    monkeypatch.delitem(sys.modules, "gflv2.engine.view.server")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gflv2\[view\]"'):
        importlib.import_module("gflv2.engine.view.server")
