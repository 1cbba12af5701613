"""The first contact with a GPU finds wrong numbers: on a CPU, with operations whose results are spoilt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks.harness.cases import TINY
from tests.gpu import smoke
from tests.ops import calls


@pytest.mark.parametrize("op", ["integral", "atss", "gfl_loss"])
def test_the_definition_passes(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main([op, "--backend", "reference", "--small"]) == 0
    assert f"{op} reference small: as the definition" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("op", "place", "spoil", "message"),
    [
        ("integral", 0, lambda tensor: tensor * 1.001, "result 0: error"),
        ("integral", 1, lambda tensor: tensor * 1.001, "result 1: error"),  # a gradient
        ("integral", 0, lambda tensor: torch.full_like(tensor, torch.nan), "values are not finite"),
        ("atss", 0, lambda tensor: tensor + 1, "of the integers agree"),
    ],
)
def test_wrong_numbers_are_found(op: str, place: int, spoil: object, message: str) -> None:
    call = smoke.small(op, torch.device("cpu"))

    def spoilt(backend: str, double: bool) -> list[torch.Tensor]:
        found = call("reference", double)
        return [spoil(tensor) if n == place and backend == "spoilt" else tensor for n, tensor in enumerate(found)]

    assert smoke.check(op, "small", call, "reference") == []
    (text,) = smoke.check(op, "small", spoilt, "spoilt")
    assert message in text


def test_memory_is_poisoned() -> None:
    with smoke.poisoned():
        assert torch.isnan(torch.empty(5)).all()
        assert torch.isnan(torch.zeros(1).new_empty(5)).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_operation_can_be_asked_for() -> None:
    assert set(calls.operations()) <= set(smoke.OPERATIONS)
    assert {"head", "decode", "integral"} <= set(smoke.LARGE)


def test_the_first_contact_asks_for_every_operation_with_kernels() -> None:
    script = (Path(benchmarks.__file__).parent / "gpu_check.sh").read_text()
    asked = " ".join(re.findall(r"^operations\+?=\((.*)\)", script, re.MULTILINE)).split()
    on_kernels_of_others = {"iou", "fgl", "ddf"}
    assert set(calls.operations()) - on_kernels_of_others <= set(asked) <= set(smoke.OPERATIONS)


@pytest.mark.parametrize("op", smoke.LARGE)
def test_the_large_call_passes(op: str) -> None:
    """Its code, on a small pyramid."""
    call = smoke.large(op, torch.device("cpu"), TINY.but(dtype="bfloat16"))
    assert smoke.check(op, "tiny", call, "reference") == []
