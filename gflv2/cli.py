"""The command ``gflv2``. Each verb calls one function that Python users can call too.

Errors of the user end with one line and exit code 2; ``--traceback`` (or GFLV2_TRACEBACK=1) shows where they arose.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import json
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gflv2.version import __version__

if TYPE_CHECKING:
    from gflv2.detector import GFLV2
    from gflv2.engine.export import OnnxDetector

_OVERRIDE = re.compile(r"--([A-Za-z_]\w*(?:\.\w+)+)(?:=(.*))?", re.DOTALL)
_NAMES = "a name (`gflv2 models`; coco: the configuration's)"
# What the command line keeps to itself; what it builds the model from.
_OWN = ("run", "takes_overrides", "traceback", "json", "skip_bad", "max_pixels")
_OF_THE_MODEL = ("config", "weights", "overrides", "device")
_USER_ERRORS = (OSError, ValueError, TypeError, ModuleNotFoundError)


class UsageError(ValueError):
    """The command line itself is wrong."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 1 (failed while running), 2 (the user's error), or 130 and 143
    (interrupted by SIGINT and SIGTERM).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # OpenMP reads this when torch is imported. Threads that spin while they wait take processor time from the data
    # workers and from other programs: on two busy cores a training step took 11 s instead of 1.3 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    traceback = "--traceback" in arguments or os.environ.get("GFLV2_TRACEBACK", "0") == "1"
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        with _log_on_stderr():
            return _run(arguments)
    except KeyboardInterrupt as error:
        print(error if str(error) else "interrupted", file=sys.stderr)
        return getattr(error, "code", 130)
    except BrokenPipeError:  # `gflv2 configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _USER_ERRORS as error:
        return _report(error, arguments, traceback, 2)
    except (RuntimeError, MemoryError) as error:
        return _report(error, arguments, traceback, 1)


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] in (["demo"], ["env"]):  # they have command lines of their own
        return importlib.import_module(f"gflv2.{arguments[0]}").main(list(arguments[1:])) or 0
    rest, raw = _split_overrides(arguments)
    options = _parser().parse_args(rest)
    if "takes_overrides" in options:
        options.overrides = parse_overrides(raw)
        if getattr(options, "skip_bad", False):
            options.overrides["data.skip_bad"] = True
    elif raw:
        raise UsageError(f"unrecognized argument --{next(iter(raw))}")
    with _max_pixels(getattr(options, "max_pixels", None)):
        return options.run(options) or 0


@contextlib.contextmanager
def _max_pixels(number: int | None) -> Iterator[None]:
    """The limit goes by way of the environment, which data workers and the processes of several devices inherit."""
    before = os.environ.get("GFLV2_MAX_PIXELS")
    if number is not None:
        os.environ["GFLV2_MAX_PIXELS"] = str(number)
    elif before:
        from gflv2.data.image import max_pixels

        max_pixels()  # a wrong value is told as such, not as the fault of each image
    try:
        yield
    finally:
        if number is not None:
            os.environ.pop("GFLV2_MAX_PIXELS")
            if before is not None:
                os.environ["GFLV2_MAX_PIXELS"] = before


def _report(error: Exception, arguments: Sequence[str], traceback: bool, code: int) -> int:
    if traceback:
        raise error
    text = _printable(" ".join(str(error).split())) or type(error).__name__
    verb = f"gflv2 {arguments[0]}" if arguments else "gflv2"
    print(f"{verb}: error: {text}", file=sys.stderr)
    if code == 1:
        print("(--traceback shows where)", file=sys.stderr)
    return code


_LONGEST = 3000  # characters of a line


def _printable(text: str) -> str:
    """A line as a terminal may get it: names out of files can hold escapes that move the cursor or change its title."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_LONGEST])
    return shown if len(text) <= _LONGEST else f"{shown}… ({len(text)} characters)"


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(_printable(line) for line in super().format(record).splitlines())


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    log, handler = logging.getLogger("gflv2"), logging.StreamHandler()
    handler.setFormatter(_Lines("%(message)s"))
    level = log.level
    log.addHandler(handler)
    # Of several processes of a training, the first says what all of them would.
    log.setLevel(logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


# ---- settings on the command line ----------------------------------------------------------------


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take ``--SECTION.KEY VALUE`` and ``--SECTION.KEY=VALUE`` out of the arguments."""
    rest, found = [], {}
    iterator = iter(arguments)
    for argument in iterator:
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        key, value = match.groups()
        if value is None:
            value = next(iterator, None)
        if value is None:
            raise UsageError(f"--{key}: expected a value, got none")
        found[key] = value
    return rest, found


def parse_overrides(raw: dict[str, str]) -> dict[str, Any]:
    """Texts → values of the fields' types: ``{"train.epochs": "3"}`` → ``{"train.epochs": 3}``.

    Lists are written ``[480,640]``, nothing as ``null``, truth values ``true`` or ``false``.

    Raises:
        UsageError: an unknown key (the message names the nearest) or a value of another type.
    """
    from gflv2.config import parse_setting

    try:
        return {key: parse_setting(key, text, "--") for key, text in raw.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _settings_help() -> str:
    from gflv2.config import settings

    lines = ["settings, as --SECTION.KEY VALUE (lists as [1,2], nothing as null); here with the general defaults,", ""]
    lines[0] += "\n`gflv2 configs NAME` prints those of a configuration:"
    sections = ("model.", "data.", "train.", "test.")
    for key, (_, default) in settings().items():
        if key.startswith(sections):
            lines.append(f"  --{key:<34} {json.dumps(default)}")
    return "\n".join(lines)


# ---- the verbs ----------------------------------------------------------------


def _hand_on(function: Callable[..., Any], options: argparse.Namespace, *model: Any) -> Any:
    """Call a verb's function; the command line's options have the names of its arguments."""
    given = {name: value for name, value in vars(options).items() if name not in _OWN}
    if model:
        given = {name: value for name, value in given.items() if name not in _OF_THE_MODEL}
    return function(*model, **given)


def _train(options: argparse.Namespace) -> None:
    from gflv2.engine.train import train

    _hand_on(train, options)


def _val(options: argparse.Namespace) -> None:
    from gflv2.engine.evaluate import evaluate

    model = _detector(options.config, options.weights, options.overrides, options.device)
    _show(_hand_on(evaluate, options, model), options.json)
    if options.output is not None:
        print(f"\ncurves and confusion matrix: {options.output}")


def _predict(options: argparse.Namespace) -> int:
    from gflv2.engine.predict import predict_files

    config, weights = _published(options.config, options.weights)
    from gflv2.engine.video import is_video

    if options.tiles is None and options.overlap is not None:
        raise UsageError("--overlap: expected with --tiles, whose neighbours it is about")
    options.overlap = 0.2 if options.overlap is None else options.overlap
    is_film = any(is_video(pattern) for pattern in options.patterns)
    if options.max_frames is not None and not is_film:
        raise UsageError("--max-frames: expected with a video or camera, got images")
    alone = (options.distributions, options.formats, options.categories)
    if is_film and (len(options.patterns) > 1 or any(alone)):
        raise UsageError("a video or camera stands alone, without images, --distributions, --formats and --categories")
    model = _detector(config or weights, weights, options.overrides, options.device)
    if is_film:
        return _predict_film(options, model)
    del options.max_frames
    report = _hand_on(predict_files, options, model)
    print(report)
    return 1 if report.failures else 0  # the other images were predicted all the same


def _analyze(options: argparse.Namespace) -> None:
    from gflv2.engine.analysis import analyze

    model = _model(options.config, options.weights, options.overrides, options.device)
    print(_hand_on(analyze, options, model))
    print(f"\nreport: {Path(options.output) / 'report.html'}")


def _study(options: argparse.Namespace) -> int:
    from gflv2.engine.study import study

    options.data = dict(options.data_files)
    del options.data_files
    result = _hand_on(study, options)
    print(result)
    print(f"\ntable, plot and numbers: {result.output}")
    return 1 if result.missing else 0


def _view(options: argparse.Namespace) -> None:
    from gflv2.engine.view import view

    config, weights = _published(options.config, options.weights, "WEIGHTS")
    _hand_on(view, options, _model(config or weights, weights, options.overrides, options.device))


def _predict_film(options: argparse.Namespace, model: GFLV2 | OnnxDetector) -> int:
    from gflv2.engine.video import predict_video

    (options.source,) = options.patterns
    del options.patterns, options.distributions, options.formats, options.categories
    print(_hand_on(predict_video, options, model))
    return 0


def _published(config: str | None, weights: str | None, option: str = "--weights") -> tuple[str | None, str | None]:
    """Configuration and weights to predict with; where no weights are named, published ones, said aloud."""
    from gflv2.checkpoint import find_weights
    from gflv2.checkpoint.zoo import COCO, DEFAULT

    named = find_weights(config or DEFAULT) if weights is None else None
    if named is None:
        return config, weights
    text = "no %s: predicting with those of %s, trained on %s by others (%s; AP %.1f as published)"
    logging.getLogger("gflv2").info(text, option, named.name, named.dataset, named.source, named.ap)
    return named.name, COCO


def _convert(options: argparse.Namespace) -> None:
    from gflv2.checkpoint import convert

    print(f"wrote {_hand_on(convert, options)}")


def _export(options: argparse.Namespace) -> None:
    from gflv2.engine.export import export

    options.outputs = "raw" if options.raw else "nms" if options.nms else "decoded"
    named = options.weights if options.weights and Path(options.weights).is_file() else options.config
    output = options.path or Path(named).with_suffix(".pt2" if options.format == "torch" else ".onnx")
    ending = {"onnx": ".onnx", "torch": ".pt2"}[options.format or {".pt2": "torch"}.get(output.suffix, "onnx")]
    if output.suffix != ending:
        wanted = ".onnx or .pt2" if options.format is None else f"{ending} for --format {options.format}"
        raise UsageError(f"--output: expected a file that ends in {wanted}, got {output}")
    if output.exists() and Path(named).exists() and output.samefile(named):
        raise UsageError(f"--output: expected another file than the weights {named}")
    options.path = output
    model = _model(options.config, options.weights, options.overrides, "cpu")
    del options.raw, options.nms, options.format
    print(_hand_on(export, options, model))


def _bench(options: argparse.Namespace) -> None:
    from gflv2.engine.bench import bench

    model = _model(options.config, options.weights, options.overrides, options.device, trained=False)
    _show(_hand_on(bench, options, model), options.json)


def _show(result: Any, path: Path | None) -> None:
    """Print a result, and write its numbers to a file where one is named."""
    print(result)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result.to_dict(), indent=2))


def _detector(
    source: str | Path, weights: str | None, overrides: dict[str, Any], device: str | None
) -> GFLV2 | OnnxDetector:
    """As ``_model``; or what `gflv2 export` wrote as ONNX."""
    from gflv2.engine.export.metadata import is_exported

    file = str(source if weights is None else weights)
    if not is_exported(file):
        return _model(source, weights, overrides, device)
    if weights is not None and weights != source:
        raise UsageError(f"--config: expected none with {file!r}, which carries its configuration, got {str(source)!r}")
    from gflv2.engine.export import OnnxDetector

    return OnnxDetector(file, device=device or "cpu", overrides=overrides)


def _model(
    source: str | Path, weights: str | None, overrides: dict[str, Any], device: str | None, *, trained: bool = True
) -> GFLV2:
    """The detector of a configuration and weights, or of weights that carry their configuration.

    ``trained``: a configuration without weights is an error.
    """
    import torch

    from gflv2.checkpoint import find_weights
    from gflv2.config import list_models, load_config
    from gflv2.detector import GFLV2

    is_config = str(source) in list_models() or Path(source).suffix in (".yaml", ".yml")
    if is_config:
        load_config(source)  # a wrong name or key is told before a missing file
        if weights is None and trained:
            hint = ", or 'coco' for the published one" if find_weights(source) else ""
            raise UsageError(f"--weights: expected a checkpoint for the configuration {str(source)!r}{hint}, got none")
    elif weights is None or weights == source:
        source, weights = None, source
        if find_weights(weights) is None and not Path(weights).is_file():
            near = difflib.get_close_matches(str(weights), list_models(), n=1)
            hint = f"; did you mean the configuration {near[0]!r}?" if near else ""
            raise FileNotFoundError(f"{str(weights)!r} is neither a file of weights nor a configuration{hint}")
    settings = {key.replace(".", "__"): value for key, value in overrides.items()}
    model = GFLV2(source, weights=weights, **settings)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def _data(options: argparse.Namespace) -> None:
    from gflv2.config import load_config
    from gflv2.data import check

    config = load_config(options.config, options.overrides)
    report = check(options.data, options.images, config=config, split=options.split, page=options.page)
    _show(report, options.json)


def _configs(options: argparse.Namespace) -> None:
    from gflv2.config import list_models, load_config

    if options.name is not None:
        import yaml

        print(yaml.safe_dump(load_config(options.name).to_dict(), sort_keys=False), end="")
        return
    rows: list[tuple[str, ...]] = [
        ("name", "backbone", "authors' AP: minival", "test-dev", "authors' FPS, RTX 2080 Ti")
    ]
    for name in list_models():
        config = load_config(name)
        numbers = (config.authors.ap_minival, config.authors.ap_test_dev, config.authors.fps_2080ti)
        rows.append((name, config.model.backbone.name, *("–" if n is None else f"{n:.1f}" for n in numbers)))
    _print_table(rows, left=(0, 1))
    print("\nThe AP and FPS are what the authors of the paper published, on COCO; they were not measured here.")


def _models(options: argparse.Namespace) -> None:
    from gflv2.checkpoint import cache_folder, list_weights

    folder = cache_folder()
    if options.json:
        print(json.dumps([{**named.to_dict(), "path": str(folder / named.file)} for named in list_weights()], indent=2))
        return
    rows: list[tuple[str, ...]] = [("name", "task", "data", "AP", "test-dev", "MB", "source", "licence", "here", "how")]
    for named in list_weights():
        numbers = (named.ap, named.ap_test_dev, None if named.size is None else named.size / 1e6)
        shown = ("–" if number is None else f"{number:.1f}" for number in numbers)
        here = "yes" if (folder / named.file).exists() else "no"
        how = "download" if named.address else "by hand"
        rows.append((named.name, named.task, named.dataset, *shown, named.source, named.licence, here, how))
    _print_table(rows, left=(0, 1, 2, 6, 7, 8, 9))
    print(
        "\nAP in percent, on COCO's minival and test-dev: as published, not measured here. –: not known."
        f'\nGFLV2(NAME, weights="coco") or --weights coco downloads them to {folder}; the first is the default of '
        "`gflv2 predict`.\nTo get those by hand, open the page that the call names."
    )


def _print_table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> None:
    """Rows in columns; those in ``left`` begin at the left, numbers end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


# ---- the command line ----------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} ({self.prog} --help shows the usage)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gflv2", description="Generalized Focal Loss V2: detect, train, evaluate, export.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"gflv2 {__version__}")
    parser.set_defaults(run=lambda options: parser.print_help())
    verbs = parser.add_subparsers(metavar="VERB", parser_class=_Parser)
    for add in (
        _add_predict,
        _add_view,
        _add_data,
        _add_train,
        _add_val,
        _add_analyze,
        _add_study,
        _add_export,
        _add_convert,
    ):
        add(verbs)
    for add in (_add_bench, _add_models, _add_configs):
        add(verbs)
    verbs.add_parser("demo", help="generate a small data set, train a light model, draw what it sees")
    verbs.add_parser("env", help="show versions, what was built, which backend each operation uses")
    return parser


def _verb(verbs: Any, name: str, run: Any, help: str, **options: Any) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = verbs.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        allow_abbrev=False,
        formatter_class=formatter,
        **options,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer ≥ 1, got {text!r}")
    return int(text)


def _add_image_options(group: Any, *, skip: bool = True) -> None:
    if skip:
        about = "leave out images that are missing, damaged or of another size, and count them (data.skip_bad)"
        group.add_argument("--skip-bad", action="store_true", help=about)
    about = "allow images of up to N pixels (default: 178956970; GFLV2_MAX_PIXELS)"
    group.add_argument("--max-pixels", type=_positive, metavar="N", help=about)


def _devices(text: str) -> int | str | list[int]:
    if text.isdigit():
        return int(text)
    if re.fullmatch(r"\d+(,\d+)+,?|\d+,", text):
        return [int(part) for part in text.split(",") if part]
    if text == "auto":
        return text
    raise argparse.ArgumentTypeError(f"expected a number of devices, a list like 0,2 or auto, got {text!r}")


def _add_train(verbs: Any) -> None:
    about = "train a detector on COCO, YOLO or Pascal VOC data"
    parser = _verb(verbs, "train", _train, about, epilog=_settings_help())
    parser.set_defaults(takes_overrides=True)
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a name that `gflv2 configs` lists, or a YAML file (--resume: by default the run's)",
    )
    data = parser.add_argument_group("data")
    forms = "a COCO JSON file, a YOLO YAML file, or a folder (docs/data.md)"
    data.add_argument("--train", dest="train_data", metavar="DATA", help=f"the training set: {forms}")
    data.add_argument("--val", dest="val_data", metavar="DATA", help="the set that each epoch is evaluated on, alike")
    data.add_argument(
        "--train-images", metavar="FOLDER", help="images of --train (default: looked for beside the file)"
    )
    data.add_argument("--val-images", metavar="FOLDER", help="images of --val (default: looked for beside the file)")
    _add_image_options(data)
    run = parser.add_argument_group("run")
    run.add_argument("--weights", metavar="FILE|NAME", help=f"start from this checkpoint, or from {_NAMES}")
    run.add_argument(
        "--no-pretrained",
        dest="pretrained",
        action="store_false",
        help="start from random weights, not from ImageNet's",
    )
    run.add_argument(
        "--teacher",
        metavar="FILE|NAME",
        help="learn the box distributions of this trained detector, too (settings: --train.distill.*)",
    )
    run.add_argument("--resume", metavar="RUN", help="continue the run in this folder (or from a .ckpt file in it)")
    run.add_argument(
        "--output", metavar="FOLDER", help="folder of the run (default: runs/NAME, numbered where it exists)"
    )
    run.add_argument("--overwrite", action="store_true", help="allow an --output that already holds a run")
    run.add_argument(
        "--max-steps",
        type=_positive,
        metavar="N",
        help="stop after N iterations (the rate follows the epochs)",
    )
    run.add_argument("--limit-train-batches", type=_positive, metavar="N", help="N training batches per epoch")
    run.add_argument("--limit-val-batches", type=_positive, metavar="N", help="N validation batches per epoch")
    run.add_argument("--no-progress", dest="progress", action="store_false", help="neither bar nor lines per epoch")
    machine = parser.add_argument_group("machine (several devices: DDP; several machines: torchrun and --num-nodes)")
    machine.add_argument("--accelerator", default="auto", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    machine.add_argument(
        "--devices", type=_devices, default="auto", metavar="N|LIST", help="a number, or a list like 0,2"
    )
    machine.add_argument("--num-nodes", type=_positive, default=1, metavar="N")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--batch-size", type=_positive, default=1, metavar="N")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def _add_val(verbs: Any) -> None:
    note = (
        "Settings may follow as --SECTION.KEY VALUE, for example --test.score_thr 0.01; with several views of each\n"
        "image: --test.tta.flip true --test.tta.scales [0.8,1,1.25]."
    )
    parser = _verb(verbs, "val", _val, "evaluate a detector as COCO does: overall, per size, per class", epilog=note)
    parser.add_argument(
        "config",
        metavar="CONFIG|WEIGHTS",
        help="a checkpoint of gflv2 or an exported .onnx file, or a configuration with --weights",
    )
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="a COCO JSON file, a YOLO YAML file, or a folder (docs/data.md)"
    )
    parser.add_argument(
        "--images", dest="image_dir", metavar="FOLDER", help="their images (default: looked for beside the file)"
    )
    _add_image_options(parser)
    parser.add_argument("--weights", metavar="FILE|NAME", help=f"checkpoint for a configuration, or {_NAMES}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    parser.add_argument(
        "--detections",
        dest="save_detections",
        type=Path,
        metavar="FILE",
        help="write the detections to this file (COCO results)",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="write precision-recall curves and a confusion matrix into this folder, as JSON, CSV and PNG",
    )
    parser.add_argument(
        "--confusion-score", type=float, default=0.3, metavar="SCORE", help="least score in the matrix (0.3)"
    )
    parser.add_argument("--confusion-iou", type=float, default=0.5, metavar="IOU", help="least IoU in the matrix (0.5)")
    parser.add_argument("--engine", default="pycocotools", choices=("pycocotools", "faster-coco-eval"))
    _add_model_options(parser)


def _add_predict(verbs: Any) -> None:
    note = (
        "Settings may follow as --SECTION.KEY VALUE, for example --test.score_thr 0.2; with several views of each\n"
        "image: --test.tta.flip true --test.tta.scales [0.8,1,1.25]."
    )
    parser = _verb(
        verbs,
        "predict",
        _predict,
        "detect objects in images or a video: pictures with boxes, and their numbers",
        epilog=note,
    )
    parser.add_argument(
        "patterns", nargs="+", metavar="FILE|FOLDER|PATTERN", help="images; or one video, or camera[:NUMBER]"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE|NAME",
        help="checkpoint (those of gflv2 carry their configuration), exported .onnx file, "
        f"or {_NAMES} (default: those of gflv2_nanodet_m)",
    )
    parser.add_argument("--config", metavar="CONFIG", help="configuration for a checkpoint that carries none")
    parser.add_argument("--output", default="predictions", metavar="FOLDER", help="default: predictions")
    parser.add_argument("--threshold", type=float, default=0.3, metavar="SCORE", help="least score that is drawn (0.3)")
    parser.add_argument("--distributions", action="store_true", help="draw the distributions of each image's best box")
    parser.add_argument(
        "--formats", nargs="+", default=(), choices=("yolo", "voc", "csv"), help="write the detections in these too"
    )
    parser.add_argument(
        "--tiles", type=_positive, metavar="PIXELS", help="cut large images into squares of this side, and merge"
    )
    parser.add_argument("--overlap", type=float, metavar="SHARE", help="least part that neighbouring tiles share (0.2)")
    parser.add_argument("--max-frames", type=_positive, metavar="N", help="of a video or camera")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="write the JSON file only")
    parser.add_argument(
        "--categories",
        type=Path,
        metavar="DATA.json",
        help="COCO file whose category ids the JSON file takes, by name (default: those that the model was trained on)",
    )
    _add_image_options(parser, skip=False)
    _add_model_options(parser)


def _add_analyze(verbs: Any) -> None:
    about = "report what a detector knows about its own boxes, and what its errors cost: one HTML file"
    note = "Settings may follow as --SECTION.KEY VALUE. docs/analyze.md says what the numbers mean."
    parser = _verb(verbs, "analyze", _analyze, about, epilog=note)
    parser.add_argument(
        "config", metavar="CONFIG|WEIGHTS", help="a checkpoint of gflv2, or a configuration with --weights"
    )
    parser.add_argument("data", metavar="DATA", help="a COCO JSON file, a YOLO YAML file, or a folder (docs/data.md)")
    parser.add_argument(
        "--images", dest="image_dir", metavar="FOLDER", help="their images (default: looked for beside the file)"
    )
    parser.add_argument("--weights", metavar="FILE|NAME", help=f"checkpoint for a configuration, or {_NAMES}")
    parser.add_argument("--output", default="analysis", metavar="FOLDER", help="default: analysis")
    parser.add_argument(
        "--threshold", type=float, default=0.3, metavar="SCORE", help="least score of the sides that are shown (0.3)"
    )
    parser.add_argument("--sides", type=int, default=24, metavar="N", help="how many uncertain sides to show (24)")
    _add_model_options(parser)


def _data_files(text: str) -> tuple[str, list[str]]:
    name, separator, files = text.partition("=")
    parts = files.split(",")
    if not separator or not 2 <= len(parts) <= 4 or not all((name, *parts)):
        raise argparse.ArgumentTypeError(f"expected NAME=TRAIN,VAL[,IMAGES[,IMAGES]], got {text!r}")
    return name, parts


def _add_study(verbs: Any) -> None:
    about = "train configurations from several seeds and compare them: means, intervals, paired differences, costs"
    note = (
        "Runs that are complete are skipped; the same command goes on after a stop. Settings of every run may follow\n"
        "as --SECTION.KEY VALUE. docs/study.md says what a study's file has and what the numbers mean."
    )
    parser = _verb(verbs, "study", _study, about, epilog=note)
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("source", metavar="STUDY", help="a YAML file, or a name: " + ", ".join(_studies()))
    parser.add_argument(
        "--quick", action="store_true", help="the small form that the study describes: minutes on a CPU"
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: studies/NAME")
    parser.add_argument(
        "--data",
        dest="data_files",
        type=_data_files,
        action="append",
        default=[],
        metavar="NAME=TRAIN,VAL[,IMAGES[,IMAGES]]",
        help="files of a data set, of the study or a new one; may come several times",
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="in place of the study's")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="some of the study's")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of its data sets")
    parser.add_argument("--base", metavar="CONFIG", help="configuration in place of the study's")
    parser.add_argument(
        "--devices",
        type=lambda text: text.split(","),
        metavar="LIST",
        help="for example cpu or 0,1 (GPUs), where each takes the next run (default: one GPU, else the CPU)",
    )
    parser.add_argument(
        "--no-pretrained", dest="pretrained", action="store_false", help="start backbones from random weights"
    )
    parser.add_argument("--no-cost", dest="cost", action="store_false", help="do not measure what the rows cost")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no lines of each training")


def _studies() -> list[str]:
    folder = Path(__file__).parent / "configs" / "studies"  # without the imports of `gflv2.engine.study`
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _add_view(verbs: Any) -> None:
    about = "open a page on this machine: drop a picture, click a box, see its four distributions"
    note = "It needs the extra view: pip install 'gflv2[view]'. Settings may follow as --SECTION.KEY VALUE."
    parser = _verb(verbs, "view", _view, about, epilog=note)
    parser.set_defaults(takes_overrides=True)
    parser.add_argument(
        "weights",
        nargs="?",
        metavar="WEIGHTS",
        help=f"checkpoint (those of gflv2 carry their configuration), or {_NAMES} (default: those of gflv2_nanodet_m)",
    )
    parser.add_argument("--config", metavar="CONFIG", help="configuration for a checkpoint that carries none")
    parser.add_argument("--port", type=int, default=8710, metavar="N", help="of 127.0.0.1; 0: any (8710)")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="do not open the page in a browser")
    parser.add_argument(
        "--megabytes", dest="most_megabytes", type=_positive, default=32, metavar="N", help="of a picture's file (32)"
    )
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: a GPU if there is one)")


def _add_input_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=_positive, default=1, metavar="N")
    parser.add_argument(
        "--size",
        dest="image_size",
        nargs=2,
        type=_positive,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images (default: the configuration's test size)",
    )


def _add_export(verbs: Any) -> None:
    note = "Settings may follow as --SECTION.KEY VALUE, for example --test.score_thr 0.2. See docs/export.md."
    about = "write a detector to a file for other programs: ONNX or torch.export, checked against PyTorch"
    parser = _verb(verbs, "export", _export, about, epilog=note)
    parser.set_defaults(takes_overrides=True)
    parser.add_argument(
        "config", metavar="WEIGHTS|CONFIG", help="a checkpoint of gflv2, or a configuration with --weights"
    )
    parser.add_argument("--weights", metavar="FILE|NAME", help=f"checkpoint for a configuration, or {_NAMES}")
    parser.add_argument(
        "--output", dest="path", type=Path, metavar="FILE", help="default: named after the weights, .onnx or .pt2"
    )
    parser.add_argument("--format", choices=("onnx", "torch"), help="default: what --output ends in, else onnx")
    outputs = parser.add_mutually_exclusive_group()
    outputs.add_argument("--nms", action="store_true", help="NMS inside: detections, not all boxes and scores")
    outputs.add_argument("--raw", action="store_true", help="logits, not boxes and scores")
    parser.add_argument("--precision", default="32", choices=("32", "16", "int8"))
    parser.add_argument("--dynamic-batch", action="store_true", help="a file for any number of images")
    parser.add_argument("--dynamic-size", action="store_true", help="a file for images of any size")
    _add_input_size(parser)
    int8 = parser.add_argument_group("int8")
    int8.add_argument("--data", metavar="DATA", help="the set that ranges are measured on (docs/data.md)")
    int8.add_argument("--images", dest="image_dir", metavar="FOLDER", help="its images")
    int8.add_argument("--calibration-images", type=_positive, default=64, metavar="N", help="of the set (64)")
    int8.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def _add_bench(verbs: Any) -> None:
    note = "Settings may follow as --SECTION.KEY VALUE, for example --model.num_classes 3."
    about = "measure the speed of a detector on this machine: latency, images per second, parameters"
    parser = _verb(verbs, "bench", _bench, about, epilog=note)
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("config", metavar="CONFIG|WEIGHTS", help="a configuration, or a checkpoint of gflv2")
    parser.add_argument(
        "--weights",
        metavar="FILE|NAME",
        help=f"checkpoint, or {_NAMES} (default: random weights, which detect nothing)",
    )
    _add_input_size(parser)
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", default="32", choices=("32", "bf16", "16"))
    parser.add_argument("--channels-last", action="store_true", help="memory layout of images and weights")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="measure at least so long (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")


def _add_convert(verbs: Any) -> None:
    parser = _verb(verbs, "convert", _convert, "write a checkpoint in another layout, by default the authors'")
    parser.add_argument(
        "source", metavar="SOURCE", help="a checkpoint of gflv2, the authors, mmengine, Lightning, …, or a named one"
    )
    parser.add_argument("path", metavar="TARGET", help="the file to write")
    parser.add_argument("--layout", default="official", choices=("official", "mmengine", "gflv2", "state_dict"))
    parser.add_argument(
        "--background",
        action=argparse.BooleanOptionalAction,
        help="write the extra class channel of the authors (default: as the programs of the layout expect)",
    )
    parser.add_argument("--config", metavar="CONFIG", help="where the keys of SOURCE do not tell it")
    parser.add_argument(
        "--no-ema",
        dest="ema",
        action="store_false",
        help="the weights being trained where SOURCE also has their average",
    )


def _add_data(verbs: Any) -> None:
    note = "Settings may follow as --SECTION.KEY VALUE, for example --data.short_side [640,640]."
    parser = _verb(
        verbs, "data", _data, "check a data set: counts, sizes, problems, what the assignment does", epilog=note
    )
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("data", metavar="DATA", help="a COCO JSON file, a YOLO YAML file, or a folder (docs/data.md)")
    parser.add_argument("--images", metavar="FOLDER", help="its images (default: looked for beside it)")
    parser.add_argument("--config", metavar="CONFIG", help="of the detector (default: the general defaults)")
    parser.add_argument("--split", default="train", metavar="NAME", help="part of a set that has several (train)")
    _add_image_options(parser)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a picture of some images with their boxes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to this file")


def _add_configs(verbs: Any) -> None:
    parser = _verb(verbs, "configs", _configs, "list the configurations, or print all settings of one")
    parser.add_argument("name", nargs="?", metavar="CONFIG", help="a name or a YAML file")


def _add_models(verbs: Any) -> None:
    parser = _verb(verbs, "models", _models, "list the published weights that can be had by name")
    parser.add_argument("--json", action="store_true", help="as JSON, with addresses, files and hashes")


if __name__ == "__main__":
    sys.exit(main())
