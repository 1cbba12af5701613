"""What the launches would compile, found without a GPU: for compiling ahead of time, and for counting compilations.

The host functions of the kernels run as they are, on CPU tensors, under a stand-in for Triton's driver that knows a
target and nothing else. Triton's own hook hands over what it is about to compile and declines: nothing is launched.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100, 120)


@dataclass(frozen=True)
class Variant:
    """One specialisation of one kernel."""

    kernel: str
    key: str = field(repr=False)  # Triton's own cache key: equal keys share one binary
    function: Any = field(repr=False, compare=False)
    signature: dict = field(repr=False, compare=False)
    constants: dict = field(repr=False, compare=False)
    attributes: dict = field(repr=False, compare=False)
    options: dict = field(compare=False)

    def compile(self, architecture: int) -> Any:
        """Triton's compiled kernel for a compute capability (80, 90, …), with ``asm["ttgir"]``, ``asm["cubin"]``, …"""
        source = ASTSource(self.function, self.signature, self.constants, self.attributes)
        return triton.compile(source, target=_target(architecture), options=self.options)


def record(call: Callable[[], Any], architecture: int = 90) -> list[Variant]:
    """The variants that ``call()`` would launch, in order, repeated where it launches one twice."""
    with recording(architecture) as variants:
        call()
    return variants


@contextlib.contextmanager
def recording(architecture: int = 90) -> Iterator[list[Variant]]:
    """Within the block every launch appends its variant to the list instead of running."""
    variants: list[Variant] = []

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002  (the hook's own name)
        variants.append(
            Variant(
                fn.name,
                str(compile["key"]),
                fn.jit_function,
                compile["signature"],
                compile["constants"],
                compile["configs"][0],
                {name: compile[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")} | _registers(compile),
            )
        )
        return True  # "already compiled": Triton then neither compiles nor launches

    driver, hook = triton.runtime.driver._active, triton.knobs.runtime.jit_cache_hook
    triton.runtime.driver.set_active(_Driver(architecture))
    triton.knobs.runtime.jit_cache_hook = note
    try:
        yield variants
    finally:
        triton.knobs.runtime.jit_cache_hook = hook
        triton.runtime.driver._active = driver


def _registers(compile: dict[str, Any]) -> dict[str, int]:  # noqa: A002
    """The option ``maxnreg``, which Triton hands over only within its key."""
    found = re.search(r"maxnreg\W+(\d+)", str(compile["key"]))
    return {"maxnreg": int(found[1])} if found else {}


class _Driver:
    """All that Triton's launch path asks of a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return _target(self._architecture)

    def get_current_device(self) -> tuple[str, int]:
        return ("ahead of time", self._architecture)  # the key of Triton's caches: never that of a real device

    def get_current_stream(self, device: Any) -> int:
        return 0


def _target(architecture: int) -> GPUTarget:
    return GPUTarget("cuda", architecture, 32)
