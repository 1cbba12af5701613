"""A local page on which one drops a picture and looks at boxes and their distributions: ``view``."""

from gflv2.engine.view.server import make_app, view

__all__ = ["make_app", "view"]
