"""Reading a checkpoint of any supported layout into one flat ``{key: tensor}``, without running code from the file."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflv2.checkpoint.download import fetch
from gflv2.checkpoint.errors import CheckpointError, exported, shorten
from gflv2.checkpoint.inert import Inert, stand_ins
from gflv2.checkpoint.integrity import check_container, check_size, check_values
from gflv2.checkpoint.zoo import NamedWeights, find_weights
from gflv2.config import load_config
from gflv2.data.records import class_name
from gflv2.shown import shown

FORMAT = "gflv2"
VERSION = 1
# Where other layouts carry our description: the top level of Lightning's, mmcv's meta, the header of safetensors.
DESCRIPTION = "gflv2"


@dataclass
class Checkpoint:
    """What a file holds, whatever program wrote it.

    ``state`` has the detector's keys (``backbone.``, ``neck.``, ``bbox_head.``) or, of a backbone alone, those of
    ``backbone.``; wrapper prefixes are gone, names of old versions renewed. Res2Net's stem may have the authors' names
    or timm's.
    """

    path: str
    layout: str  # "gflv2", "mmcv", "mmengine", "lightning", "weights", "nanodet"
    state: dict[str, Tensor]
    class_names: list[str] | None = None
    config: dict[str, Any] | None = None  # of our own files
    notes: list[str] = field(default_factory=list)
    category_ids: list[Any] | None = None  # of our own files: of each class, an integer or a text

    @property
    def is_detector(self) -> bool:
        return any(key.startswith("bbox_head.") for key in self.state)

    @property
    def has_quality(self) -> bool:
        return any(key.startswith("bbox_head.reg_conf.") for key in self.state)


def read(path: str | Path | NamedWeights | Checkpoint, *, ema: bool = True) -> Checkpoint:
    """Read a checkpoint file onto the CPU.

    Layouts: this project's; mmcv's and mmengine's (also from the middle of a training); Lightning's; a bare state_dict
    of a detector or of a backbone (torchvision, timm); safetensors. Zip files and the older torch format are both read,
    always with ``weights_only=True``. And NanoDet-m's ONNX files.

    Args:
        path: the file; or the name of published weights (see ``find_weights``), which are downloaded where the cache
            does not have them. (What an earlier call returned is passed through.)
        ema: where the file has both, take the averaged weights (True) or those being trained (False).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file cannot be read without running code from it (the message names what it asks for), is
            damaged, holds no weights, or weights that are NaN, infinite or complex; or it could not be downloaded.
    """
    if isinstance(path, Checkpoint):
        return path
    named = find_weights(path)
    path = Path(path) if named is None else fetch(named, check=_read_torch)
    if not path.is_file():
        web = str(path).startswith(("http:", "https:"))
        raise FileNotFoundError(f"weights: {'download the file first: ' if web else 'no such file: '}{path}")
    if path.suffix == ".onnx":
        checkpoint = _read_onnx(path)
    else:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        checkpoint = interpret(content, str(path), ema=ema)
    check_size(checkpoint.state, path)
    check_values(checkpoint.state, str(path))
    return checkpoint


def read_content(path: str | Path) -> Any:
    """What a torch file holds, whole and unchanged: tensors on the CPU and plain values. Errors as in ``read``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise CheckpointError(f"weights: {path} needs the package safetensors: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = {"state_dict": {key: file.get_tensor(key) for key in file.keys()}}
            header = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"weights: {path} is not a readable safetensors file: {error}") from error
    if DESCRIPTION in header:
        content[DESCRIPTION] = json.loads(header[DESCRIPTION])
    return content


def _read_onnx(path: Path) -> Checkpoint:
    from gflv2.checkpoint.nanodet import read_nanodet

    state, config = read_nanodet(path)
    return Checkpoint(str(path), "nanodet", state, config=config)


def _read_torch(path: Path) -> Any:
    _refuse_known_strangers(path)
    check_container(path)
    with torch.serialization.safe_globals(stand_ins()):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                warnings.filterwarnings("ignore", message="Validating sparse tensor")  # which are refused
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refusal(path, error) from error
        except (RuntimeError, EOFError, OSError, KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
            if _is_torch_export(path):
                raise exported(path) from error
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"weights: {path} cannot be read as a PyTorch checkpoint ({text}). A truncated download? "
                f"The file has {path.stat().st_size} bytes."
            ) from error


def _is_torch_export(path: Path) -> bool:
    """Whether torch.export.save wrote a file that `torch.load` cannot read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/archive_format") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _refuse_known_strangers(path: Path) -> None:
    """Name the usual mistakes, for which the pickle reader would only say that an opcode is unknown."""
    with path.open("rb") as file:
        start = file.read(256)
    kind = None
    if not start:
        kind = "is empty"
    elif start.lstrip()[:1] == b"<":
        kind = "is a web page, not a checkpoint: the download went wrong"
    elif start.startswith(b"version https://git-lfs"):
        kind = "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    elif start[:1] == b"\x80" and start[1:2] > b"\x02":
        # torch.save writes protocol 2; other protocols come from pickle.dump.
        kind = (
            "is a plain Python pickle, which is never loaded, because that would run code from the file. "
            "Where you trust it, load it yourself and save its tensors with torch.save or safetensors"
        )
    if kind:
        raise CheckpointError(f"weights: {path} {kind}")


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """An error that says what the file asked for, without PyTorch's advice to switch the protection off."""
    reason = " ".join(str(error.__context__ or error).removeprefix("WeightsUnpickler error:").split())
    if "Unsupported operand" in reason:
        return CheckpointError(
            f"weights: {path} is refused: it uses a pickle protocol that PyTorch does not read safely ({reason}). "
            f"Save it again with torch.save's default protocol"
        )
    names = re.findall(r"GLOBAL (\S+)", reason)
    if zipfile.is_zipfile(path):
        try:
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or names
        except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
            pass  # the error already names the first one
    things = f"the Python object{'s' if len(names) > 1 else ''} {shorten(names)}" if names else f"more ({reason})"
    return CheckpointError(
        f"weights: {path} is refused: besides tensors it asks for {things}, and building that could run code from it. "
        f"Get a file with weights only; or, where you trust its origin, in the program that wrote it: "
        f'torch.save({{"state_dict": model.state_dict()}}, "weights.pth")'
    )


# ---- from the file's content to a flat state_dict ------------------------------------------------------------------

_MAIN = ("state_dict", "model_state_dict", "model", "net", "params")
_EMA_NOTES = {
    True: "took the averaged weights (EMA)",
    False: "took the weights being trained, not their average (EMA)",
}
_AVERAGED = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")


def interpret(content: Any, path: str = "<memory>", *, ema: bool = True) -> Checkpoint:
    """The second half of ``read``: ``content`` is what the file held, for example a ``state_dict`` in memory."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"weights: {path} holds a {type(content).__name__}; expected a state_dict or a dictionary with one"
        )
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    notes: list[str] = []
    layout = _layout(content, meta)
    description = _description(content, meta, layout, path)
    state = _pick_state(content, layout, ema, notes, path)
    state = _unwrap(state, ema, notes, path)
    state = {_renew(key): value for key, value in state.items()}
    names = _names(description.get("class_names")) or _names_of_meta(meta)
    try:
        names = names and [class_name(name, f"weights: {path}: class {label}") for label, name in enumerate(names)]
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    ids = _category_ids(description.get("category_ids"), names, path)
    return Checkpoint(path, layout, state, names, _configuration(description.get("config"), path), notes, ids)


def _category_ids(ids: Any, names: list[str] | None, path: str) -> list[Any] | None:
    """Those of the file, if there is one for each of its class names."""
    if ids is None or names is None:
        return None
    plain = isinstance(ids, (list, tuple)) and all(isinstance(i, (int, str)) and not isinstance(i, bool) for i in ids)
    if not plain or len(set(ids)) != len(ids) or len(ids) != len(names):
        raise CheckpointError(
            f"weights: {path} holds category ids that are not valid: expected {len(names)} different integers or texts"
        )
    return list(ids)


def _configuration(config: Any, path: str) -> dict[str, Any] | None:
    """That of the file, if each value is of its type and in its range; as such, where the file has it as a text."""
    if not isinstance(config, Mapping):
        return None
    try:
        checked = load_config(config).to_dict()
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"weights: {path} holds a configuration that is not valid: {error}") from error
    return checked if "base" in config else _part(checked, config)


def _part(whole: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``whole`` for the keys that are given."""
    return {key: _part(whole[key], value) if isinstance(value, Mapping) else whole[key] for key, value in given.items()}


def _layout(content: Mapping, meta: Mapping) -> str:
    if content.get("format") == FORMAT:
        return "gflv2"
    if "message_hub" in content or "mmengine_version" in meta or "dataset_meta" in meta:
        return "mmengine"
    if "pytorch-lightning_version" in content:
        return "lightning"
    if meta and "state_dict" in content:
        return "mmcv"
    return "weights"


def _description(content: Mapping, meta: Mapping, layout: str, path: str) -> Mapping:
    """Our own entries: class names and configuration."""
    found: Any = content if layout == "gflv2" else content.get(DESCRIPTION, meta.get(DESCRIPTION))
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        return {}
    version = found.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"weights: {path} has format version {shown(version)}; this gflv2 reads up to {VERSION}. Update gflv2."
        )
    return found


def _pick_state(content: Mapping, layout: str, ema: bool, notes: list[str], path: str) -> dict[str, Tensor]:
    main = next((content[key] for key in _MAIN if _is_state(content.get(key))), None)
    averaged = next((content[key] for key in _AVERAGED if _is_state(content.get(key))), None)
    if layout == "mmengine" and main is not None and averaged is not None:
        # mmengine's EMAHook exchanges the two on saving: "state_dict" is the average, "ema_state_dict" is trained on.
        main, averaged = averaged, main
    if layout == "lightning" and _is_state(content.get("current_model_state")):
        # Lightning's WeightAveraging puts the average in "state_dict".
        main, averaged = content["current_model_state"], main
    if main is not None and averaged is not None:
        notes.append(_EMA_NOTES[ema])
        chosen = averaged if ema else main
    else:
        chosen = main if main is not None else averaged
    if chosen is None and _is_state(content):
        chosen = content
    if chosen is None:
        raise CheckpointError(f"weights: {path} holds no state_dict; its entries are {shorten(map(_key, content))}")
    arrays = [str(key) for key, value in chosen.items() if isinstance(value, Inert)]
    if arrays:
        raise CheckpointError(
            f"weights: {path}: {len(arrays)} entries are arrays or objects, not tensors: {shorten(arrays)}. "
            f"Save them as tensors."
        )
    return _with_buffer_average(
        {str(key): value.detach() for key, value in chosen.items() if isinstance(value, Tensor)}, ema, notes
    )


def _key(key: Any) -> str:
    return key if isinstance(key, str) and len(key) < 80 else shown(key)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, (Tensor, Inert)) for item in value.values())


def _with_buffer_average(state: dict[str, Tensor], ema: bool, notes: list[str]) -> dict[str, Tensor]:
    """mmcv 1's EMAHook: buffers ``ema_backbone_conv1_weight`` … in the same state_dict, exchanged before saving too."""
    shadows = {key: "ema_" + key.removeprefix("module.").replace(".", "_") for key in state}
    pairs = {}
    for key, shadow in shadows.items():
        for name in (shadow, "module." + shadow):
            if name in state:
                pairs[key] = name
    if not pairs:
        return state
    notes.append(_EMA_NOTES[ema])
    hidden = set(pairs.values())
    return {k: v if ema else state[pairs.get(k, k)] for k, v in state.items() if k not in hidden}


_PART = re.compile(r"^(.*?)(?:backbone|neck|bbox_head)\.")
_WRAPPERS = ("module.", "model.")
_AVERAGE_NAMES = ("ema", "teacher", "average", "shadow")


def _unwrap(state: dict[str, Tensor], ema: bool, notes: list[str], path: str) -> dict[str, Tensor]:
    """Drop what wrappers add: DataParallel ``module.``, torch.compile ``_orig_mod.``, Lightning ``model.``."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    prefixes = Counter(match[1] for key in state if (match := _PART.match(key)))
    if not prefixes:
        for _ in range(4):
            wrapper = next((w for w in _WRAPPERS if state and all(key.startswith(w) for key in state)), "")
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
        return {"backbone." + key: value for key, value in state.items()}
    prefix = _choose_prefix(prefixes, ema, notes, path)
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    inside = {key: value for key, value in inside.items() if prefix or not _belongs_to_other(key, prefixes)}
    left_out = [key for key in inside if key.startswith("data_preprocessor.")]
    outside = len(state) - len(inside) + len(left_out)
    if outside:
        notes.append(f"{outside} entries outside the detector were left out")
    return {key: value for key, value in inside.items() if key not in left_out}


def _belongs_to_other(key: str, prefixes: Counter) -> bool:
    return any(other and key.startswith(other) for other in prefixes)


def _choose_prefix(prefixes: Counter, ema: bool, notes: list[str], path: str) -> str:
    if len(prefixes) == 1:
        return next(iter(prefixes))
    averages = [p for p in prefixes if any(name in p.lower() for name in _AVERAGE_NAMES)]
    plain = [p for p in prefixes if p not in averages]
    wanted = averages if ema and averages else plain
    if len(wanted) != 1:
        raise CheckpointError(
            f"weights: {path} holds several detectors, under the prefixes {shorten(repr(p) for p in prefixes)}; "
            f"save one of them alone"
        )
    if averages:
        notes.append(_EMA_NOTES[ema])
    return wanted[0]


# mmcv before 1.0 (DeformConvPack version < 2) put the offset convolution beside the deformable one.
_OLD_OFFSET = re.compile(r"^(.*\.(?:conv\d+|convs\.\d+))_offset\.(weight|bias)$")


def _renew(key: str) -> str:
    return _OLD_OFFSET.sub(r"\1.conv_offset.\2", key)


def _names(value: Any) -> list[str] | None:
    if isinstance(value, str):  # ("ball") without its comma, a common slip in mmdetection's CLASSES
        return [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return list(value)
    return None


def _names_of_meta(meta: Mapping) -> list[str] | None:
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    return _names(meta.get("CLASSES")) or _names(dataset.get("classes")) or _names(dataset.get("CLASSES"))
