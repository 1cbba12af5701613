"""The site of docs/ (`make docs`): Sphinx reads the Markdown pages as they are, and the docstrings of the public API.

Nothing of the built site loads from another host: the theme brings its own files, and equations become MathML, which
browsers draw by themselves.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gflv2 import __version__  # noqa: E402

project = "gflv2"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links like data.md#images

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings write `name`
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"gflv2 {version}"
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
html_math_renderer = "mathml"


def write_equation(self: Any, node: nodes.math | nodes.math_block) -> None:
    """Write an equation as MathML; docutils has the converter."""
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def escape_docstring(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text with `names` and bullets: |x| and a*b in them are no markup."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.+?``|`.+?`)", line)
        parts[::2] = [re.sub(r"([|]|[*](?! ))", r"\\\1", text) for text in parts[::2]]
        lines[number] = "".join(parts)


def skip_fields(app: Any, what: str, name: str, of: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a named tuple have no text of their own; the class lists them."""
    return True if (getattr(of, "__doc__", None) or "").startswith("Alias for field number") else None


def refuse_other_hosts(app: Any, error: Exception | None) -> None:
    """Warn of every page that would load a script, a style or a picture from elsewhere."""
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"'](?:https?:)?//[^>]*>")
    for page in sorted(Path(app.outdir).rglob("*.html")):
        for found in loads.findall(page.read_text()):
            logging.getLogger(__name__).warning("%s loads from another host: %s", page.name, found)


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (write_equation, None), (write_equation, None))
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon makes markup of it
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("build-finished", refuse_other_hosts)
