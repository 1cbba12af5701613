"""For configurations: ``custom_imports = dict(imports=["gflv2.integrations.mmdet.accelerated"])``.

Importing this module calls ``accelerate()``. ``restore()`` undoes it; since a module is imported once, Python code that
wants it back calls ``accelerate()`` itself.
"""

from gflv2.integrations.mmdet import accelerate

accelerate()
