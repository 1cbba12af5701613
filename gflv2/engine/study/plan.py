"""What a study compares: the YAML file, checked and read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from gflv2.config import FOLDER, Config, load_config
from gflv2.data import shapes
from gflv2.shown import shown
from gflv2.yaml_files import read_named

STUDIES = FOLDER / "studies"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=×-]{0,60}")
_KEYS = ("like", "title", "about", "base", "settings", "seeds", "data", "rows", "compare", "cost_rounds", "quick")
_QUICK = ("settings", "seeds", "data", "rows", "cost_rounds")
_DATA = ("train", "val", "train_images", "val_images", "generate", "about", "settings")
_GENERATE = {"seed": 0, "train": 1, "val": 1, "size": shapes.LEAST_SIDE}  # and the least that each may be
_ROW = ("base", "settings", "compare")


@dataclass(frozen=True)
class DataSet:
    """Data that every row is trained on and evaluated on.

    Attributes:
        train, val, train_images, val_images: paths, as ``train`` takes them; None where the set is generated, or not
            given.
        generate: arguments of `gflv2.data.shapes.generate` instead.
        about: what to give for it, where the study has no paths.
        settings: of all runs on it.
    """

    name: str
    train: str | None = None
    val: str | None = None
    train_images: str | None = None
    val_images: str | None = None
    generate: Mapping[str, int] | None = None
    about: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_given(self) -> bool:
        return self.generate is not None or self.train is not None


@dataclass(frozen=True)
class Row:
    """One of the configurations that are compared: the study's, with these settings.

    ``base``: another configuration than the study's. ``compare``: another row to compare with.
    """

    name: str
    base: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    compare: str | None = None


@dataclass(frozen=True)
class Run:
    """One training: a row on a data set from a seed."""

    row: Row
    data: DataSet
    seed: int

    @property
    def place(self) -> Path:
        """Its folder below that of the study."""
        return Path("runs") / folder_name(self.data.name) / folder_name(self.row.name) / f"seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.data.name}, {self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        name: of the file. title: of its table and plot. source: the file.
        base: the configuration that all rows start from. settings: of every run.
        overrides: settings of whoever calls; they come after the study's and the data's, before a row's.
        seeds, data, rows: what is multiplied.
        compare: the row that the others are compared with, seed by seed.
        cost_rounds: how often each row takes a step where costs are measured; 0: not at all.
        pretrained: whether backbones start from ImageNet weights.
    """

    name: str
    title: str
    source: Path
    base: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    data: tuple[DataSet, ...]
    rows: tuple[Row, ...]
    compare: str
    cost_rounds: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = True

    def runs(self) -> list[Run]:
        """All of them, seed by seed: what is there early can be compared in pairs."""
        return [Run(row, data, seed) for data in self.data for seed in self.seeds for row in self.rows]

    def config(self, row: Row, data: DataSet, seed: int = 0) -> Config:
        """The configuration of a run, without its data."""
        config = load_config(_beside(self.source, row.base or self.base))
        for where, settings in (
            ("settings", self.settings),
            (f"data.{data.name}.settings", data.settings),
            ("overrides", self.overrides),
            (f"rows.{row.name}", row.settings),
            ("seeds", {"train.seed": seed}),
        ):
            try:
                config = load_config(config, settings)
            except (TypeError, ValueError) as error:
                if where == "overrides":
                    raise
                raise type(error)(f"study: {self.source}: {where}: {error}") from error
        for key, wanted in self.overrides.items():
            if load_config(config, {key: wanted}) != config:
                value: Any = config
                for name in key.split("."):
                    value = getattr(value, name)
                why = f"the row {row.name!r} of {self.source} has it: {shown(value)}"
                if key == "train.seed":
                    why = "a study's seeds are its own (--seeds)"
                raise ValueError(f"{key}: expected none, since {why}; got {shown(wanted)}")
        return config


def list_studies() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def read_study(
    source: str | Path,
    *,
    quick: bool = False,
    data: Mapping[str, Sequence[str | Path]] | None = None,
    seeds: Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    base: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    pretrained: bool = True,
) -> Study:
    """Read a study and check it, with the configuration of every run.

    Args:
        source: a YAML file, or a name of ``list_studies()``. docs/study.md has its keys.
        quick: the small form that its section ``quick`` describes.
        data: name → (train, val) or (train, val, images of both) or (train, val, images, images): files for a data set
            of the study, or for one of another name.
        seeds: in place of the study's. rows, only: a part of its rows and of its data sets; their order stays.
        base: configuration in place of the study's.
        overrides: dotted keys, for every run, none that a row sets itself.
        pretrained: start backbones from ImageNet weights.

    Raises:
        FileNotFoundError: no such study. ValueError, TypeError: names file, key, what was expected and what came.
    """
    path, content = _load(source)
    _only(path, "", content, _KEYS)
    base = _text(path, "base", content.get("base")) if base is None else base
    found = Study(
        name=path.stem,
        title=_text(path, "title", content.get("title", path.stem)),
        source=path,
        base=base,
        settings=_settings(path, "settings", content.get("settings", {})),
        seeds=_seeds(path, "seeds", content.get("seeds", [0])),
        data=_data_sets(path, content.get("data")),
        rows=_rows(path, content.get("rows")),
        compare=_text(path, "compare", content.get("compare", "")),
        cost_rounds=_rounds(path, "cost_rounds", content.get("cost_rounds", 10)),
        overrides=dict(overrides or {}),
        pretrained=pretrained,
    )
    if not found.compare:
        found = replace(found, compare=found.rows[0].name)
    _choose(path, "compare", [found.compare], [row.name for row in found.rows])
    if quick:
        found = _quick(path, found, content.get("quick"))
    found = _with_data(found, data or {})
    if seeds is not None:
        found = replace(found, seeds=_seeds(path, "seeds", list(seeds)))
    if rows is not None:
        _choose(path, "rows", rows, [row.name for row in found.rows])
        found = replace(found, rows=tuple(row for row in found.rows if row.name in rows))
    if only is not None:
        _choose(path, "data", only, [one.name for one in found.data])
        found = replace(found, data=tuple(one for one in found.data if one.name in only))
    for row in found.rows:
        for one in found.data:
            found.config(row, one)
    return found


def folder_name(name: str) -> str:
    return name.replace(" ", "_")


def _load(source: str | Path, below: tuple[Path, ...] = ()) -> tuple[Path, dict[str, Any]]:
    """A study's file and what stands in it, over the one that it is ``like``. ``below``: files that are like it."""
    path, content = read_named(source, "study", "A study", "study of the package", STUDIES, list_studies)
    content = dict(_mapping(path, "", content))
    like = content.pop("like", None)
    if like is None:
        return path, content
    if path in below:
        raise ValueError(f"study: {path}: like: the file is like itself, by way of {len(below)} files")
    _, other = _load(_beside(path, _text(path, "like", like)), (*below, path))
    return path, {**other, **content}


# ---- one key -------------------------------------------------------------------------------------


def _wrong(path: Path, key: str, expected: str, got: Any, kind: type[Exception] = TypeError) -> NoReturn:
    raise kind(f"study: {path}: {f'{key}: ' if key else ''}expected {expected}, got {shown(got)}")


def _mapping(path: Path, key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        _wrong(path, key, "a mapping", value)
    for name in value:
        if not isinstance(name, str):
            _wrong(path, key, "texts as names (quote a number)", name)
    return value


def _settings(path: Path, key: str, value: Any) -> Mapping[str, Any]:
    """Settings of runs. A seed is none of them: each run has one of the study's."""
    settings = _mapping(path, key, value)
    train = settings.get("train")
    for part, name in ((settings, "train.seed"), (train, "seed")):
        if isinstance(part, Mapping) and name in part:
            why = "none, since a study's seeds are its own (seeds)"
            _wrong(path, f"{key}: train.seed", why, part[name], ValueError)
    return settings


def _only(path: Path, key: str, value: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            place = f"{key}.{name}" if key else name
            raise ValueError(f"study: {path}: unknown key {place}{hint} (known: {', '.join(known)})")


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str):
        _wrong(path, key, "a text", value)
    return value


def _name(path: Path, key: str, value: str) -> str:
    if not _NAME.fullmatch(value):
        _wrong(path, key, "a name of letters, digits and . _ + = - × and spaces", value, ValueError)
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seeds(path: Path, key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(_whole(seed) and 0 <= seed < 2**32 for seed in value):
        _wrong(path, key, "a list of integers ≥ 0, for example [0, 1, 2]", value)
    if len(set(value)) < len(value):
        _wrong(path, key, "each seed once", value, ValueError)
    return tuple(value)


def _rounds(path: Path, key: str, value: Any) -> int:
    if not _whole(value) or not 0 <= value <= 10_000:
        _wrong(path, key, "an integer from 0 to 10,000", value)
    return value


def _choose(path: Path, key: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            _wrong(path, key, f"one of {', '.join(map(repr, known))}", name, ValueError)


def _data_sets(path: Path, value: Any) -> tuple[DataSet, ...]:
    sets = []
    for name, given in _mapping(path, "data", value).items():
        key = f"data.{_name(path, 'data', name)}"
        given = _mapping(path, key, given)
        _only(path, key, given, _DATA)
        files = {k: _text(path, f"{key}.{k}", given[k]) for k in _DATA[:4] if k in given}
        if ("train" in files) != ("val" in files):
            _wrong(path, key, "both train and val", sorted(files), ValueError)
        generate = given.get("generate")
        if generate is not None:
            if files:
                _wrong(path, key, "either generate or files", sorted(files), ValueError)
            _only(path, f"{key}.generate", _mapping(path, f"{key}.generate", generate), tuple(_GENERATE))
            for k, number in generate.items():
                least = _GENERATE[k]
                if not _whole(number) or number < least:
                    kind = ValueError if _whole(number) else TypeError
                    _wrong(path, f"{key}.generate.{k}", f"an integer ≥ {least}", number, kind)
        settings = _settings(path, f"{key}.settings", given.get("settings", {}))
        about = _text(path, f"{key}.about", given.get("about", ""))
        files = {k: str(path.parent / file) for k, file in files.items()}
        sets.append(DataSet(name, **files, generate=generate, about=about, settings=settings))
    if not sets:
        _wrong(path, "data", "at least one data set", value, ValueError)
    _distinct(path, "data", [one.name for one in sets])
    return tuple(sets)


def _rows(path: Path, value: Any) -> tuple[Row, ...]:
    rows = []
    for name, given in _mapping(path, "rows", value).items():
        key = f"rows.{_name(path, 'rows', name)}"
        given = _mapping(path, key, {} if given is None else given)
        _only(path, key, given, _ROW)
        base = None if given.get("base") is None else _text(path, f"{key}.base", given["base"])
        compare = None if given.get("compare") is None else _text(path, f"{key}.compare", given["compare"])
        rows.append(Row(name, base, _settings(path, f"{key}.settings", given.get("settings", {})), compare))
    if not rows:
        _wrong(path, "rows", "at least one row", value, ValueError)
    for row in rows:
        if row.compare is not None:
            _choose(path, f"rows.{row.name}.compare", [row.compare], [other.name for other in rows])
    _distinct(path, "rows", [row.name for row in rows])
    return tuple(rows)


def _distinct(path: Path, key: str, names: list[str]) -> None:
    folders = [folder_name(name).lower() for name in names]
    if len(set(folders)) < len(folders):
        _wrong(path, key, "names that differ in more than spaces and capitals", names, ValueError)


def _quick(path: Path, study: Study, value: Any) -> Study:
    if value is None:
        _wrong(path, "quick", "a section of that name for the quick form", None, ValueError)
    value = _mapping(path, "quick", value)
    _only(path, "quick", value, _QUICK)
    sets, rows = study.data, study.rows
    if "data" in value:
        sets = _data_sets(path, value["data"])
    if "rows" in value:
        if not isinstance(value["rows"], list):
            _wrong(path, "quick.rows", "a list of rows", value["rows"])
        _choose(path, "quick.rows", value["rows"], [row.name for row in rows])
        rows = tuple(row for row in rows if row.name in value["rows"])
    settings = _settings(path, "quick.settings", value.get("settings", {}))
    sets = tuple(replace(one, settings={**one.settings, **settings}) for one in sets)
    return replace(
        study,
        name=f"{study.name}-quick",
        seeds=_seeds(path, "quick.seeds", value.get("seeds", list(study.seeds))),
        data=sets,
        rows=rows,
        cost_rounds=_rounds(path, "quick.cost_rounds", value.get("cost_rounds", study.cost_rounds)),
    )


def _with_data(study: Study, given: Mapping[str, Sequence[str | Path]]) -> Study:
    """The study with files from outside in place of what it says about these sets, or beside it."""
    sets = {one.name: one for one in study.data}
    for name, files in given.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"data: expected a name of letters, digits and . _ + = - × and spaces, got {shown(name)}")
        if not 2 <= len(files) <= 4:
            raise ValueError(f"data: {name}: expected train, val and at most two folders of images, got {shown(files)}")
        train, val, *images = map(str, files)
        old = sets.get(name, DataSet(name))
        folders: dict[str, Any] = dict(zip(("train_images", "val_images"), images * (3 - len(images)), strict=False))
        sets[name] = DataSet(name, train, val, settings=old.settings, **folders)
    return replace(study, data=tuple(sets.values()))


def _beside(source: Path, value: str) -> str:
    """A configuration's or study's path counts from the folder of the file; its name stays a name."""
    place = source.parent / value
    return str(place) if place.exists() and (Path(value).suffix or "/" in value) else value
