"""Run the install lines of docs/integrations.md for a package in an environment with torch and torchvision alone.

``python .ci/install_page.py PACKAGE FOLDER``: creates FOLDER anew, links torch, torchvision and what they require from
this environment into it, so that they need not be fetched again, and runs the page's lines there, with all that pip
resolves by itself. Then a detector is trained for a step, as the page says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.docs.blocks import ROOT, blocks, commands  # noqa: E402

CHECKS = {
    "mmdet": """
from gflv2.integrations.mmdet import accelerate, standin

standin()
from mmengine.registry import init_default_scope
from tests.integrations.mmdet.detectors import build, step

init_default_scope("mmdet")
print(accelerate())
for kind in ("GFL", "ATSS", "VFNet"):
    print(kind, {name: round(float(value), 4) for name, value in step(build(kind))[0].items()})
""",
}


def closure(names: list[str]) -> list[Distribution]:
    """The distributions and all that they require, where they are installed."""
    found: dict[str, Distribution] = {}
    while names:
        name = names.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue
        if one.metadata["Name"] in found:
            continue
        found[one.metadata["Name"]] = one
        wanted = [Requirement(text) for text in one.requires or []]
        names += [line.name for line in wanted if line.marker is None or line.marker.evaluate({"extra": ""})]
    return list(found.values())


def link(one: Distribution, folder: Path) -> None:
    """Every file or folder of a distribution that lies directly in its environment's packages."""
    for top in {Path(file).parts[0] for file in one.files or []}:
        source, target = Path(one.locate_file(top)), folder / top
        if top in ("..", "__pycache__") or target.exists():
            continue
        if source.is_dir() and top == "nvidia":  # shared by several distributions
            shutil.copytree(source, target, symlinks=True, copy_function=os.symlink)
        else:
            target.symlink_to(source)


def main(package: str, folder: Path) -> None:
    page = [one for one in blocks(ROOT / "docs/integrations.md") if "make test-install" in (one.not_run or "")]
    (block,) = [one for one in page if f"{package}==" in one.text]
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    for one in closure(["torch", "torchvision"]):
        link(one, packages)
    for words in commands(block):
        assert words[0] == "pip", f"{block}: only lines of pip are run, got {words}"
        subprocess.run([sys.executable, "-m", "pip", "--python", python, *words[1:], "--quiet"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([python, "-W", "ignore", "-c", CHECKS[package]], check=True, env=environment, cwd=ROOT)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
