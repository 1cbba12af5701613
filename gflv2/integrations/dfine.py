"""D-FINE and DEIM: transformers' ports, the authors' repositories, and whatever took the same classes over.

    from gflv2.integrations import dfine
    dfine.accelerate()               # D-FINE and DEIMv2 of transformers (pip install transformers)

    # In a clone of Peterande/D-FINE; in one of ShihuaHuang95/DEIM it is engine.deim, and deim_criterion.
    from src.zoo.dfine import dfine_criterion, dfine_decoder
    dfine.accelerate(dfine_decoder, dfine_criterion)

replaces in each Python module, for every model that exists or will be built:

* ``…Integral.forward`` by `gflv2.ops.integral`, with the non-uniform values W(n) of the bins as projection;
* ``…LQE.forward``, the location quality estimator: `gflv2.ops.dgqp` where its predictor is linear, ReLU, linear, else
  `gflv2.ops.dgqp_statistics` and the module's own predictor;
* ``weighting_function``, which forms W(n) out of R single numbers: computed once, and again only when ``up`` or
  ``reg_scale`` have changed;
* of a criterion ``loss_labels_vfl`` and ``loss_labels_mal``, varifocal and matchability-aware loss:
  `gflv2.integrations.dfine_class_losses`; ``loss_local``, the fine-grained localisation loss and self-distillation, and
  ``loss_boxes``, L1 and GIoU: `gflv2.integrations.dfine_losses`. Both say where results differ, too.

Not replaced: the matcher, deformable attention. ``accelerate()`` returns and logs what was replaced and what was not.

Conventions of the package, which stay as they are:

* R = ``reg_max`` + 1 = 33 bins (transformers: ``max_num_bins`` + 1), side-major, (B, L, 4·R) box logits of L queries;
* W(n) is not uniform: ±2·|up·reg_scale| at both ends, 0 in the middle; distances are relative to the sides of the
  query's first box, not to a stride, and there are no points;
* targets beyond the last bin are set to ``reg_max`` − 0.1;
* statistics of a side: its k = 4 largest probabilities and their mean, as in GFLV2. But the quality **is added to the
  class logits** (B, L, C), before one sigmoid; GFLV2 multiplies two sigmoids.

A training starts with all bins of a side equal. Of equal probabilities ours takes the lower bin first, the package's
those that ``topk`` happens to take: the values are the same, but the gradient goes to other bins until they differ.

Distances and scores have the dtype of the logits and scores that came in; inside, everything is float32. With
`gflv2.ops.dgqp` the layers of ``reg_conf`` are read and not called, so hooks on them do not run. While a model is
traced or exported, and for ``weighting_function`` also while it is compiled or captured in a CUDA graph, the package's
own code runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from gflv2.integrations import dfine_class_losses, dfine_losses
from gflv2.integrations.methods import Method, Replacements, always, expected_distances
from gflv2.integrations.report import Report, Stayed, answer
from gflv2.ops.checks import bad_type, bad_value
from gflv2.ops.dgqp import dgqp, dgqp_statistics

# Those of transformers that there are, one at least.
MODULES = (
    "transformers.models.d_fine.modeling_d_fine",
    "transformers.models.deimv2.modeling_deimv2",
    "transformers.loss.loss_d_fine",
    "transformers.loss.loss_deimv2",
)

_STAYED = (
    Stayed("HungarianMatcher", "an optimal matching, another algorithm than ATSS"),
    Stayed("deformable attention", "no operation of gflv2 computes it"),
)
_LAYERS = Stayed(
    "LQE with a predictor that is not linear, ReLU, linear", "its own layers, behind gflv2.ops.dgqp_statistics"
)
_NO_CRITERION = Stayed(
    "the criterion", "its module was not among those given: accelerate(dfine_decoder, dfine_criterion)"
)
_OF_CRITERIA = {**dfine_losses.METHODS, **dfine_class_losses.METHODS}
_ours = Replacements("D-FINE")


def accelerate(*modules: ModuleType) -> Report:
    """Replace the methods and the function of each module. A second call adds to the first, and says what is new.

    Args:
        *modules: Python modules that define classes named …Integral or …LQE, or a criterion (a class with a method
            ``loss_local`` or ``loss_labels_vfl``), or hold a function ``weighting_function``; none: those of
            transformers.

    Returns:
        What was replaced, and what stayed with the package and why; it is logged, too.

    Raises:
        ModuleNotFoundError: no module was given, and transformers is not installed.
        TypeError, ValueError: an argument that is not a Python module, or has nothing to replace.
        RuntimeError: methods with parameters that are not known here.
            Where a call raises it changes nothing: what was replaced before stays so.
    """
    found = [_read(module) for module in modules or _of_transformers()]
    earlier = _ours.replaced()
    classes = {key: owner for part, _ in found for key, owner in part.items()}
    methods = {(owner, kind): _METHODS[kind] for owner, kind in classes}
    functions = {
        (module, "weighting_function"): (module, "weighting_function", Once(module.weighting_function))
        for _, module in found
        if module is not None
    }
    _ours.add(classes, methods, functions)
    kinds = {kind for _, kind in _ours.keys()}
    stayed = list(_STAYED)
    if "LQE" in kinds:
        stayed.append(_LAYERS)
    if not kinds & set(_OF_CRITERIA):
        stayed.insert(0, _NO_CRITERION)
    return answer("D-FINE", _ours.replaced(), earlier, stayed)


def restore() -> None:
    """Put the package's own methods back."""
    _ours.restore()


class Once:
    """``weighting_function``, which keeps its result for as long as its arguments have not changed.

    A change is seen by the arguments' version counters and addresses, without a look at their values, so nothing waits
    for the device; a write through ``.data`` goes unseen. Nothing is kept of arguments that need a gradient.
    """

    def __init__(self, function: Callable) -> None:
        self.function = self.__wrapped__ = function
        self._kept = WeakTensorKeyDictionary()  # up → (state of the arguments, W)

    def __call__(self, bins: int, up: Tensor, reg_scale: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
        """W(n), (bins + 1,), as the package's function gives it; the result must not be written to."""
        state = None if args or kwargs else _state(up, reg_scale)
        if state is None:
            return self.function(bins, up, reg_scale, *args, **kwargs)
        before = self._kept.get(up)
        if before is None or before[0] != (bins, state):
            # An inference tensor could not be saved for the backward pass of a later training step.
            with torch.inference_mode(False), torch.no_grad():
                before = (bins, state), self.function(bins, up, reg_scale)
            self._kept[up] = before
        return before[1]


def _state(*arguments: Any) -> tuple | None:
    """What changes with the arguments; None where nothing may be kept."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    state = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.requires_grad or argument.is_inference() or type(argument) not in (Tensor, nn.Parameter):
                return None
            if argument.is_cuda and torch.cuda.is_current_stream_capturing():
                return None
            state += (argument.data_ptr(), argument._version, argument.dtype, argument.device)
        else:
            state.append(argument)
    return tuple(state)


def _of_transformers() -> list[ModuleType]:
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError(
            "gflv2.integrations.dfine needs the package 'transformers', which is not installed: pip install "
            "transformers; or give it the decoder's module in a clone of https://github.com/Peterande/D-FINE or "
            "https://github.com/ShihuaHuang95/DEIM: accelerate(dfine_decoder)",
            name="transformers",
        )
    names = [name for name in MODULES if _exists(name)]
    if not names:
        raise RuntimeError("transformers: expected a version that has D-FINE (4.52 or newer), found none of its models")
    return [importlib.import_module(name) for name in names]


def _exists(module: str) -> bool:
    package = module.rpartition(".")[0]
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None


def _read(module: Any) -> tuple[dict[Any, type], ModuleType | None]:
    """The module's classes to patch, by (class, which of `_METHODS`), and the module where it has the function."""
    if not isinstance(module, ModuleType):
        bad_type("modules", "Python modules, such as dfine_decoder", module)
    classes = {
        (value, what): value
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
        for what in _parts(name, value)
    }
    function = hasattr(module, "weighting_function")
    if not classes and not function:
        bad_value("modules", "modules with an Integral, an LQE, a criterion or a weighting_function", module.__name__)
    return classes, module if function else None


def _parts(name: str, owner: type) -> list[str]:
    """Which of ``_METHODS`` are for this class."""
    found = [what for what in ("Integral", "LQE") if name.endswith(what)]
    if "loss_local" in vars(owner):
        found += dfine_losses.METHODS
    return found + dfine_class_losses.methods_of(owner)


def _integral(self: Any, box_logits: Tensor, project: Tensor) -> Tensor:
    """(…, 4·R) logits and the values (R,) of the bins → (…, 4)."""
    rows = box_logits.unflatten(-1, (4, project.shape[-1]))
    return expected_distances(rows, project.to(box_logits.device))


def _lqe(self: Any, scores: Tensor, pred_corners: Tensor) -> Tensor:
    """(B, L, C) class logits and (B, L, 4·R) box logits → class logits + quality."""
    rows = pred_corners.reshape(-1, 4, pred_corners.shape[-1] // 4)
    topk = self.k if hasattr(self, "k") else self.top_prob_values
    layers = _two_layers(self.reg_conf)
    if layers is not None:
        first, second = layers
        quality = dgqp(rows, first.weight, first.bias, second.weight, second.bias, topk=topk)
    else:
        statistics = dgqp_statistics(rows, topk=topk)
        quality = self.reg_conf(statistics.to(next(self.reg_conf.parameters()).dtype))
    return scores + quality.view(*scores.shape[:-1], 1).to(scores.dtype)


def _two_layers(predictor: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The layers of a predictor that is linear, ReLU, linear, with biases, and nothing else."""
    layers = tuple(predictor.layers)
    plain = all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
    return layers if len(layers) == 2 and plain and type(predictor.act) is nn.ReLU else None


_METHODS = {
    "Integral": Method("forward", (None, "project"), always(_integral)),
    "LQE": Method("forward", ("scores", "pred_corners"), always(_lqe)),
    **_OF_CRITERIA,
}
