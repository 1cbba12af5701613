"""What is changed in a training step of the light model, one thing at a time: ``REMEDIES``, and the step itself."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from benchmarks import inputs
from benchmarks.harness.cases import Case
from gflv2 import GFLV2
from gflv2.config import TrainConfig
from gflv2.data import Batch
from gflv2.engine.schedule import make_optimizer, optimizer_settings
from gflv2.models.cpu_convolutions import COLUMNS, CPUConvolutions

LAST = {"memory_format": torch.channels_last}
CLASSES = 3


class Remedy(NamedTuple):
    """What is changed in a step.

    Attributes:
        columns, products: paths of ``CPUConvolutions``. fused: AdamW in one kernel. bf16: autocast of the forward pass.
        last: channels_last. fold: norms in eval mode that are folded into their convolutions, of the "frozen" part or
        "all". group_norm: False leaves it out, which is no remedy, but shows its share.
        ap: its rows of ``light_step_ap.csv``.
    """

    columns: bool = False
    products: bool = False
    fused: bool = False
    bf16: bool = False
    last: bool = True
    fold: str = ""
    group_norm: bool = True
    ap: str = ""


PLAIN, AGAIN = "plain", "plain again"
REMEDIES = {
    PLAIN: Remedy(ap="none"),
    AGAIN: Remedy(),
    "gradients of wide depthwise kernels in columns": Remedy(columns=True, ap="columns"),
    "1×1 kernels by oneDNN": Remedy(products=True, ap="products"),
    "both (train.fast_convolutions)": Remedy(columns=True, products=True, ap="both"),
    "fused AdamW": Remedy(fused=True, ap="fused"),
    "norms of the frozen part folded": Remedy(fold="frozen", ap="frozen"),
    "all norms in eval mode folded": Remedy(fold="all", ap="folded"),
    "all of these": Remedy(columns=True, products=True, fused=True, fold="all", ap="all"),
    "autocast to bfloat16": Remedy(bf16=True, ap="bf16"),
    "NCHW": Remedy(last=False, ap="nchw"),
    "without GroupNorm (another net: its share)": Remedy(group_norm=False),
}


class FoldedNorms(TorchFunctionMode):
    """While it is entered, BatchNorm layers in eval mode are part of the convolutions before them.

    Weights and gradients are those of the layers, up to rounding: the kernel γ/√(σ² + ε) · w is formed in each step.

    Args:
        pairs: convolution without bias, and the norm of its output.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Conv2d, _BatchNorm]]) -> None:
        super().__init__()
        self.norms = {id(conv.weight): norm for conv, norm in pairs}
        self.folded = {id(norm.running_mean) for _, norm in pairs}

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and id(args[1]) in self.norms:
            return self._conv2d(self.norms[id(args[1])], *args)
        if func is F.batch_norm and id(args[1]) in self.folded:
            return args[0]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _conv2d(norm: _BatchNorm, x: Tensor, weight: Tensor, bias: None, *options: Any) -> Tensor:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        weight = weight * scale[:, None, None, None]
        if weight.shape[1] == 1 and weight.shape[3] > COLUMNS:  # the faster path takes none with a bias
            return F.conv2d(x, weight, None, *options).add_(shift[:, None, None])
        return F.conv2d(x, weight, shift, *options)


class WithoutGroupNorm(TorchFunctionMode):
    """While it is entered, ``group_norm`` returns its input."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return args[0] if func is F.group_norm else func(*args, **(kwargs or {}))


def pairs_of(model: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """Convolutions without bias and the norms in eval mode that their outputs go to."""
    made: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # so that no address is given out twice
    found = []

    def after(module: nn.Conv2d, given: Any, output: Tensor) -> None:
        made[id(output)] = module
        kept.append(output)

    def before(module: _BatchNorm, given: tuple[Tensor]) -> None:
        conv = made.get(id(given[0]))
        if conv is not None and conv.bias is None and not module.training:
            found.append((conv, module))

    hooks = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before) for m in model.modules() if isinstance(m, _BatchNorm)]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def entered(remedy: Remedy, pairs: Sequence[tuple[nn.Conv2d, _BatchNorm]]) -> contextlib.ExitStack:
    """Enters what changes the forward pass of a model with such pairs (`pairs_of`)."""
    stack = contextlib.ExitStack()
    stack.enter_context(paths(remedy))
    if remedy.fold:
        chosen = [pair for pair in pairs if remedy.fold == "all" or not pair[0].weight.requires_grad]
        stack.enter_context(FoldedNorms(chosen))
    if not remedy.group_norm:
        stack.enter_context(WithoutGroupNorm())
    if remedy.bf16:
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
    return stack


def paths(remedy: Remedy) -> contextlib.AbstractContextManager[Any]:
    """Enters the faster paths of convolutions."""
    if remedy.columns or remedy.products:
        return CPUConvolutions(columns=remedy.columns, products=remedy.products)
    return contextlib.nullcontext()


def fused_adamw(parameters: Iterable[nn.Parameter], recipe: TrainConfig) -> torch.optim.Optimizer:
    """The recipe's AdamW in one kernel."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.AdamW(trained, **optimizer_settings(recipe), fused=True)


class Steps:
    """A model, a batch, and the training step of its recipe: clipping, AdamW and averaged weights included.

    The learning rate is 0, so that every step works on the same weights.
    """

    def __init__(self, config: str, batch: int, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.model = GFLV2(config, num_classes=CLASSES).train()
        cpu = torch.device("cpu")
        case = Case(model=config, batch=batch, size=size)
        self.boxes, self.labels = inputs.boxes(case, cpu, 0)
        self.labels = [labels % CLASSES for labels in self.labels]
        self.images = torch.randn(batch, 3, *size)
        self.sizes: Any = None
        self.recipe = self.model.config.train
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.averages = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.optimisers = {fused: self.optimiser(fused, lr=0.0) for fused in (False, True)}
        self.last: bool | None = None
        self.pairs = pairs_of(self.model, self.images)

    def optimiser(self, fused: bool, lr: float) -> torch.optim.Optimizer:
        """The recipe's, at another rate."""
        recipe = dataclasses.replace(self.recipe, lr=lr, scale_lr=False)
        return fused_adamw(self.trained, recipe) if fused else make_optimizer(self.trained, recipe)

    def lay_out(self, last: bool) -> None:
        """Weights, averages and images in the layout of a remedy."""
        if last != self.last:
            kind = torch.channels_last if last else torch.contiguous_format
            self.model.to(memory_format=kind)
            self.images, self.last = self.images.contiguous(memory_format=kind), last
            self.averages = [parameter.detach().clone() for parameter in self.model.parameters()]

    def take(self, batch: Batch) -> None:
        """A batch of a loader in place of the generated one."""
        kind = torch.channels_last if self.last else torch.contiguous_format
        self.images, self.sizes = batch.images.contiguous(memory_format=kind), batch.padded_sizes
        self.boxes, self.labels = batch.boxes, [labels % CLASSES for labels in batch.labels]

    def forward(self, images: Tensor) -> Any:
        return self.model.bbox_head(self.model.features(images))  # without what the model's own `forward` takes

    def phases(self, remedy: Remedy, optimiser: torch.optim.Optimizer, forward: Any = None) -> Iterator[str]:
        """A training step; the name of each phase before it is taken."""
        yield "forward"
        with entered(remedy, self.pairs):
            output = (forward or self.forward)(self.images)
        yield "loss"
        optimiser.zero_grad()
        loss = sum(self.model.bbox_head.loss(output, self.boxes, self.labels, self.sizes).values())
        yield "backward"
        loss.backward()
        yield "optimiser"
        if self.recipe.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.recipe.clip_grad_norm)
        optimiser.step()
        if self.recipe.ema_decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, list(self.model.parameters()), 1 - self.recipe.ema_decay)

    def __call__(self, remedy: Remedy, forward: Any = None) -> None:
        for _ in self.phases(remedy, self.optimisers[remedy.fused], forward):
            pass

    def numbers(self, remedy: Remedy) -> tuple[Tensor, Tensor]:
        """Gradients of all weights, and the weights after a step at the recipe's rate; the weights are put back."""
        self.lay_out(remedy.last)
        before = [parameter.detach().clone() for parameter in self.trained]
        for _ in self.phases(remedy, self.optimiser(remedy.fused, self.recipe.lr)):
            pass
        gradients = torch.cat([p.grad.flatten() for p in self.trained if p.grad is not None]).double()
        after = torch.cat([p.detach().flatten() for p in self.trained])
        with torch.no_grad():
            for parameter, value in zip(self.trained, before, strict=True):
                parameter.copy_(value)
        return gradients, after
