"""Damaged, hostile and useless checkpoints: refused in one line, before they cost memory; none loads in silence."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch

from gflv2 import GFLV2, cli
from gflv2.checkpoint import CheckpointError, convert, interpret, read, save
from gflv2.checkpoint.integrity import check_values


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"model__neck__channels": 16, "model__head__channels": 16, "model__head__gn_groups": 4}
    return GFLV2("gflv2_lite0", num_classes=2, model__head__stacked_convs=1, **sizes)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp("file") / "a.pt")


def changed(file, path, change):
    """A copy of our own file with other tensors."""
    content = torch.load(file, weights_only=True)
    content["state_dict"] = change(content["state_dict"])
    torch.save(content, path)
    return path


def one_line(path, capsys) -> str:
    """What the command says of a file; exit code 2 and no traceback."""
    assert cli.main(["bench", str(path), "--seconds", "0.01"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("gflv2 bench: error: "), error
    return error[0]


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_any_record_is_found(file, tmp_path, seed) -> None:
    content = bytearray(file.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    with zipfile.ZipFile(file) as archive:
        # Weights in records that are larger than the alignment between them.
        records = [record for record in archive.infolist() if record.file_size > 4096]
    record = records[int(torch.randint(len(records), (), generator=generator))]
    start = content.index(record.filename.encode()) + len(record.filename) + 64  # the padding is at most so long
    position = start + int(torch.randint(record.file_size - 128, (), generator=generator))
    content[position] ^= 1 << int(torch.randint(8, (), generator=generator))
    (tmp_path / "b.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"b.pt cannot be read .*CRC.*damaged"):
        read(tmp_path / "b.pt")


def test_a_file_without_checksums_is_still_read(model, tmp_path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(model, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read(path).state.keys() == model.state_dict().keys()


EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_formats_of_eight_bits_are_looked_through(name) -> None:
    """torch has no isfinite for most of them."""
    values = torch.tensor([1.0, float("nan")]).to(getattr(torch, name))
    check_values({"a": values[:1]}, "w.pt")
    with pytest.raises(CheckpointError, match="1 of 2 tensors hold NaN or infinite values, first b"):
        check_values({"a": values[:1], "b": values}, "w.pt")


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no numbers of 4 bits")
def test_two_numbers_in_a_byte_are_refused() -> None:
    with pytest.raises(CheckpointError, match="packed or sparse: a .float4_e2m1fn_x2"):
        check_values({"a": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "w.pt")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: {k: v * NAN if v.is_floating_point() else v for k, v in s.items()}, "hold NaN or infinite values"),
        (
            lambda s: {**s, "neck.fpn_convs.0.conv.bias": s["neck.fpn_convs.0.conv.bias"] + INF},
            r"1 of \d+ tensors hold",
        ),
        (lambda s: {k: v.to(torch.complex64) if v.is_floating_point() else v for k, v in s.items()}, "complex"),
        (lambda s: {k: v.reshape(-1)[0] if v.dim() == 4 else v for k, v in s.items()}, r"shape \(\)"),
        (lambda s: {k: v.flatten() if v.dim() == 4 else v for k, v in s.items()}, "of another shape|has the shape"),
        (lambda s: {k: torch.zeros(()) for k in s}, "of another shape|has the shape"),
        (lambda s: {k: v.to_sparse() if v.dim() == 4 else v for k, v in s.items()}, "sparse"),
        (lambda s: {**s, "x": torch.zeros(1).expand(2**40)}, r"refused: it has .* its tensors claim .* the largest x"),
        (lambda s: {}, "holds no state_dict"),
        (lambda s: [], "holds no state_dict"),
        (lambda s: {k: v.flatten()[:2].tolist() for k, v in s.items()}, "holds no state_dict"),
    ],
    ids="all-nan one-inf complex 0-d 1-d all-0-d sparse expanded empty list lists".split(),
)
@pytest.mark.parametrize("bare", [False, True])
def test_useless_weights_are_refused(file, tmp_path, capsys, change, message, bare) -> None:
    path = changed(file, tmp_path / "b.pt", change)
    if bare:
        torch.save(torch.load(path, weights_only=True)["state_dict"], path)
        message = f"{message}|holds a |its entries are"
    assert re.search(message, one_line(path, capsys))


def test_weights_that_are_not_finite_are_not_written(model, tmp_path) -> None:
    path = save(model, tmp_path / "a.pt")
    before = path.read_bytes()
    weight = model.bbox_head.gfl_cls.bias
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = NAN
        with pytest.raises(CheckpointError, match=r"a.pt is not written: 1 of \d+ tensors hold NaN.*bbox_head.gfl_cls"):
            save(model, path)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert path.read_bytes() == before


def bomb(path, size: int) -> None:
    """A checkpoint whose one storage is ``size`` zeros, packed into a thousandth."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"bbox_head.gfl_cls.weight": torch.zeros(1, 1, 1, 1)}}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if not name.endswith("data/0"):
                new.writestr(name, old.read(name))
                continue
            with new.open(name, "w", force_zip64=True) as record:
                for _ in range(size >> 20):
                    record.write(bytes(1 << 20))


def test_a_packed_file_of_zeros_costs_no_memory(tmp_path) -> None:
    bomb(tmp_path / "bomb.pt", 1 << 28)
    code = (
        "import sys\nfrom gflv2.checkpoint import CheckpointError, read\nfrom tests.process import peak_kib\n"
        "before = peak_kib()\n"
        "try:\n    read(sys.argv[1])\nexcept CheckpointError as error:\n    print(error)\n"
        "print(peak_kib() - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    message, grown = done.stdout.splitlines()
    assert "bomb.pt is refused: it has" in message and "would unpack to 268,43" in message
    assert int(grown) < 100_000, f"{grown} KiB for a file that unpacks to 262,144"


def test_a_file_that_lies_about_its_sizes(file, tmp_path) -> None:
    """Each record claims the whole archive: overlapping records, stored as they are."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    place = len(content) - 1
    directory = content.rindex(b"PK\x01\x02", 0, place)
    # The size of the last record in the central directory.
    content[directory + 24 : directory + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "b.pt").write_bytes(content)
    assert records
    with pytest.raises(CheckpointError, match="b.pt (is refused|cannot be read)"):
        read(tmp_path / "b.pt")


def make_tar(path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            record = tarfile.TarInfo(name)
            record.size = 4
            archive.addfile(record, io.BytesIO(b"\x80\x02N."))


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.write_bytes(b"\x80"), "cannot be read"),
        (lambda path: path.write_bytes(b"\x80\x02"), "cannot be read|refused"),
        (lambda path: path.write_bytes(b"\x80\x02."), "cannot be read|refused"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "cannot be read"),
        (lambda path: path.write_bytes(bytes(100)), "cannot be read|refused"),
        (make_tar, "is a tar archive"),
        (lambda path: torch.save(3, path), "holds a int"),
        (lambda path: torch.save({"state_dict": None}, path), "no state_dict"),
        (lambda path: torch.save({1: torch.zeros(1)}, path), "backbone alone|another"),
        (lambda path: path.mkdir(), "neither a file of weights nor"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(write, message, tmp_path, capsys) -> None:
    path = tmp_path / "some.pt"
    write(path)
    line = one_line(path, capsys)
    assert re.search(message, line) and "some.pt" in line
    assert "weights_only" not in line


def test_every_single_tensor_of_another_rank_is_an_error_of_its_own(file, tmp_path) -> None:
    content = torch.load(file, weights_only=True)
    state = content["state_dict"]
    keys = [key for key in state if key.endswith("weight") and not key.startswith("backbone.blocks")]
    assert len(keys) > 15
    for key in keys:
        for value in (torch.zeros(()), torch.zeros(3), torch.zeros(0, 0, 0, 0)):
            other = {**state, key: value}
            for held in ({**content, "state_dict": other}, other):
                with pytest.raises((CheckpointError, ValueError)):
                    GFLV2(weights=interpret(held))
                with contextlib.suppress(CheckpointError, ValueError):  # some it need not look at
                    convert(interpret(held), tmp_path / "c")
