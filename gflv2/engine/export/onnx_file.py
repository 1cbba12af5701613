"""ONNX models made from a traced graph, and their sessions in onnxruntime."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.engine.export.graph import Sizes
from gflv2.extras import missing_package

# The exporter's functions are written in this version, so nothing is converted; older engines read it too. Deformable
# convolution came with 19, and 20 is the first after it that all of torch's exporters since 2.9 write.
OPSET, DEFORMABLE_OPSET = 18, 20


def need(*names: str, what: str) -> list[Any]:
    """Packages of the extra ``export``; an error that names the pip line where one is missing."""
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        raise missing_package(error, what) from error


def to_onnx(program: torch.export.ExportedProgram, sizes: Sizes, output_names: Sequence[str], opset: int) -> Any:
    """The ``onnx.ModelProto`` of a traced graph: input ``images``, the outputs' names, open sizes with names."""
    need("onnx", "onnxscript", what="Writing ONNX")
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of the exporter's own deprecated parts
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=list(output_names),
                verbose=False,
            )
    finally:
        log.setLevel(level)
    proto = written.model_proto
    _forget_sources(proto)
    _name_sizes(proto, sizes)
    return proto


def _forget_sources(proto: Any) -> None:
    """Without the stack traces of every node: half of a small file, and paths of the machine that wrote it."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]


def _name_sizes(proto: Any, sizes: Sizes) -> None:
    """The exporter's ``s39`` → ``batch``, ``rows``, ``columns``: an open size is ``step``·rows."""
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    names = {}
    for axis, name in ((0, "batch"), (2, "rows"), (3, "columns")):
        if symbol := re.search(r"\b(?!batch\b|rows\b|columns\b)[A-Za-z]\w*", shape[axis].dim_param):
            names[symbol[0]] = name
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(names) + r")\b")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda match: names[match[0]], dim.dim_param)


def set_metadata(proto: Any, texts: Mapping[str, str]) -> None:
    del proto.metadata_props[:]
    for key, value in texts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def session(model: bytes | str, device: str = "cpu") -> Any:
    """An onnxruntime session of a file or of its bytes, with as many threads as PyTorch has.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed. ValueError: not on this device, or not a model that it runs.
    """
    (runtime,) = need("onnxruntime", what="Running an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
    kind = torch.device(device).type
    if kind not in providers or providers[kind][0] not in runtime.get_available_providers():
        have = ", ".join(runtime.get_available_providers())
        raise ValueError(f"device: {device!r} is none that this onnxruntime runs ONNX files on (it has {have})")
    try:
        return runtime.InferenceSession(model, options, providers=providers[kind])
    except Exception as error:  # onnxruntime's own errors have no common class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"onnxruntime cannot run it: {lines[0]}") from error


def run(runtime_session: Any, **inputs: Tensor) -> list[Tensor]:
    """The outputs of one call.

    Raises:
        MemoryError: there is not enough. RuntimeError: onnxruntime cannot run it.
    """
    arrays = {name: value.detach().cpu().numpy() for name, value in inputs.items()}
    try:
        outputs = runtime_session.run(None, arrays)
    except (MemoryError, RuntimeError):
        raise
    except Exception as error:  # onnxruntime's own errors have no common class
        text = " ".join(str(error).split()) or type(error).__name__
        kind = MemoryError if "allocate memory" in text or "bad_alloc" in text else RuntimeError
        raise kind(f"onnxruntime: {text}") from error
    return [torch.from_numpy(array) for array in outputs]


def run_images(runtime_session: Any, images: Tensor) -> list[Tensor]:
    """``run`` of a file whose only input is ``images``."""
    return run(runtime_session, images=images)


def shapes(proto: Any) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Inputs and outputs: name → sizes, numbers or names."""

    def of(values: Any) -> dict[str, list[Any]]:
        return {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
        }

    return of(proto.graph.input), of(proto.graph.output)
