"""The whole training step with static shapes as one CUDA graph: forward, assignment, losses, backward, optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from gflv2.engine.cuda_graph.replay import Replay, Weights, check_autocast, check_shape, half_precision, to_device
from gflv2.models.detector import SingleStageDetector
from gflv2.ops.atss import check_padded_sizes
from gflv2.ops.checks import bad_type, bad_value, check_count, check_number, check_tensor
from gflv2.ops.reduction import INTEGERS


class CapturedTrainingStep:
    """``step(images, boxes, labels)`` trains the model by one step and returns its losses, without waiting for the
    device.

    The boxes of each image are copied into a row of ``max_boxes``; a counter says how many exist. The learning rate of
    every group becomes a tensor on the device, which schedulers of ``torch.optim`` fill and the graph reads. All other
    settings of the optimiser are those of the capture.

    Args:
        model: in training mode. Afterwards its weights may change in place, not move.
        optimizer: SGD with ``fused=True``; Adam or AdamW with ``capturable=True``; with a scaler fused in any case.
        shape: (B, 3, H, W) of the images.
        max_boxes: of one image.
        padded_sizes: as ``model.loss``, of every batch to come; None: all cells count.
        max_ignore_boxes: of one image; for models whose ``ignore_iof_thr`` > 0.
        autocast: None, ``torch.bfloat16`` or ``torch.float16``: what forward and losses run in.
        scaler: a ``torch.amp.GradScaler``; its scale is updated within the step.
        clip_grad_norm: as ``torch.nn.utils.clip_grad_norm_``; None: no clipping.
        channels_last: memory layout of the images; None: ``model.config.train.channels_last``.
        warmup: steps before the recording. Weights, optimiser, scaler and random numbers are set back afterwards.
        graph: None: a CUDA graph on a GPU, on a CPU the same code without one. False: never one.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it.
        RuntimeError: torch.distributed runs with several processes.
    """

    def __init__(
        self,
        model: SingleStageDetector,
        optimizer: Optimizer,
        shape: Sequence[int],
        *,
        max_boxes: int,
        padded_sizes: Sequence[tuple[int, int]] | None = None,
        max_ignore_boxes: int = 0,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        clip_grad_norm: float | None = None,
        channels_last: bool | None = None,
        warmup: int = 3,
        graph: bool | None = None,
    ) -> None:
        weight = next(model.parameters())
        device = weight.device
        batch = check_shape(shape)[0]
        check_count(max_boxes, "max_boxes")
        check_count(max_ignore_boxes, "max_ignore_boxes", 0)
        check_count(warmup, "warmup")
        check_padded_sizes(padded_sizes, batch)
        if clip_grad_norm is not None:
            check_number(clip_grad_norm, "clip_grad_norm", above=0)
        check_autocast(autocast, device)
        check_optimizer(optimizer, scaler)
        if not model.training:
            bad_value("model", "a model in training mode: call model.train()", "one in eval mode")
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise RuntimeError(
                f"capture_training_step: expected one process, got {distributed.get_world_size()}: gradients are not "
                "exchanged between processes in a captured step (docs/cuda_graphs.md)"
            )
        if channels_last is None:
            channels_last = model.config.train.channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format

        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._autocast, self._clip_grad_norm, self._padded_sizes = autocast, clip_grad_norm, padded_sizes
        self._images = torch.empty(tuple(shape), dtype=weight.dtype, device=device, memory_format=layout).zero_()
        self._boxes = torch.zeros(batch, max_boxes, 4, device=device)
        self._labels = torch.zeros(batch, max_boxes, dtype=torch.int64, device=device)
        self._counts = torch.zeros(batch, dtype=torch.int64, device=device)
        # Unused slots hold boxes without area, which cover no point.
        self._ignore_boxes = torch.zeros(batch, max_ignore_boxes, 4, device=device) if max_ignore_boxes else None
        self._names: tuple[str, ...] = ()
        self._replay = Replay(self._run, device, graph=graph, before=self._forget_gradients)
        before, rates = _State(model, optimizer, scaler), [group["lr"] for group in optimizer.param_groups]
        self._rates = [torch.as_tensor(rate, dtype=torch.float32).detach().to(device, copy=True) for rate in rates]
        try:
            _set_rates(optimizer, self._rates)
            self._warm_up(warmup, before)
            self._replay.record()
        except BaseException:
            # Out of memory, for one: the caller's optimiser must work as before.
            _set_rates(optimizer, rates)
            self._forget_gradients()
            raise
        self._weights, self._moments = Weights(model), _moments(optimizer)

    def _warm_up(self, steps: int, before: _State) -> None:
        """Run a few steps, then restore what they changed."""
        device = self._images.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
            # PyTorch warns that an optimiser made for graphs runs without one; here that is meant.
            warnings.filterwarnings("ignore", message=r".*constructed with capturable=True.*")
            try:
                self._replay.warm_up(steps)
            finally:
                before.restore()

    def __call__(
        self,
        images: Tensor,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        *,
        counts: Tensor | None = None,
        ignore_boxes: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """One step.

        Args:
            images: of the shape, dtype and device of the capture.
            boxes: B tensors (G_i, 4), float32, of at most ``max_boxes``; or one padded tensor (B, G, 4).
            labels: B tensors (G_i,), or (B, G); integers.
            counts: (B,) integers, how many of the padded boxes of each image exist; None: all.
            ignore_boxes: B tensors (K_i, 4), of at most ``max_ignore_boxes``; without effect where the model's
                ``ignore_iof_thr`` is 0.

        Returns:
            The weighted losses as ``model.loss``, 0-d, of the weights before the step; without gradients.
        """
        self.copy_in(images, boxes, labels, counts=counts, ignore_boxes=ignore_boxes)
        return self.run()

    @torch.no_grad()
    def copy_in(self, images: Any, boxes: Any, labels: Any, *, counts: Any = None, ignore_boxes: Any = None) -> None:
        """Check the arguments of a step and copy them into the buffers."""
        self._weights.check()
        for number, (group, rate) in enumerate(zip(self._optimizer.param_groups, self._rates, strict=False)):
            if group["lr"] is not rate:
                bad_value(
                    f"optimizer.param_groups[{number}]['lr']",
                    "the tensor of the capture, changed by lr.fill_(); capture again after load_state_dict()",
                    group["lr"],
                )
        static = self._images
        check_tensor(images, "images", shape=tuple(static.shape), dtypes=(static.dtype,), device=static.device)
        # All checks come before the first copy: a call that is refused leaves the buffers unchanged.
        if isinstance(boxes, Tensor):
            self._check_padded(boxes, labels, counts)
        else:
            self._check_ragged(boxes, labels, counts)
        ignoring = ignore_boxes is not None and self._model.bbox_head.assigner.ignore_iof_thr > 0
        if ignoring:
            slots = 0 if self._ignore_boxes is None else self._ignore_boxes.shape[1]
            _check_list(ignore_boxes, "ignore_boxes", len(static), slots, "max_ignore_boxes", (4,), self._boxes)

        static.copy_(images)
        if isinstance(boxes, Tensor):
            self._boxes[:, : boxes.shape[1]].copy_(boxes)
            self._labels[:, : boxes.shape[1]].copy_(labels)
            if counts is None:
                self._counts.fill_(boxes.shape[1])
            else:
                self._counts.copy_(counts.clamp(0, boxes.shape[1]))
        else:
            numbers = [len(image) for image in boxes]
            self._counts.copy_(to_device(numbers, torch.int64, static.device))
            _fill_rows(self._boxes, boxes, numbers)
            _fill_rows(self._labels, labels, numbers)
        if self._ignore_boxes is not None:
            self._ignore_boxes.zero_()
            if ignoring:
                _fill_rows(self._ignore_boxes, ignore_boxes, [len(image) for image in ignore_boxes])

    def run(self) -> dict[str, Tensor]:
        """Replay, or call, the step on what the buffers hold."""
        # A copy, because the next replay overwrites these losses.
        return dict(zip(self._names, self._replay().clone().unbind(), strict=True))

    def _forget_gradients(self) -> None:
        """Backward then allocates new gradients; in a graph, always at the same addresses."""
        self._optimizer.zero_grad(set_to_none=True)
        self._model.zero_grad(set_to_none=True)

    def _run(self) -> Tensor:
        """One step on the buffers: what a graph records."""
        with half_precision(self._autocast, self._images.device):
            losses = self._model.loss(
                self._images, self._boxes, self._labels, self._padded_sizes, self._ignore_boxes, self._counts
            )
        self._names = tuple(losses)
        total = torch.stack([loss.float() for loss in losses.values()])
        scaler = self._scaler
        if scaler is None:
            total.sum().backward()
            self._clip()
            self._optimizer.step()
        else:
            scaler.scale(total.sum()).backward()
            if self._clip_grad_norm is not None:
                scaler.unscale_(self._optimizer)
                self._clip()
            scaler.step(self._optimizer)
            scaler.update()
        return total.detach()

    def _clip(self) -> None:
        if self._clip_grad_norm is not None:
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._clip_grad_norm)

    def _check_padded(self, boxes: Any, labels: Any, counts: Any) -> None:
        batch, slots, _ = self._boxes.shape
        device = self._boxes.device
        check_tensor(boxes, "boxes", shape=(batch, None, 4), dtypes=(torch.float32,), device=device)
        if boxes.shape[1] > slots:
            bad_value("boxes", f"at most max_boxes = {slots} boxes an image", boxes)
        check_tensor(labels, "labels", shape=tuple(boxes.shape[:2]), dtypes=INTEGERS, device=device)
        if counts is not None:
            check_tensor(counts, "counts", shape=(batch,), dtypes=INTEGERS, device=device)

    def _check_ragged(self, boxes: Any, labels: Any, counts: Any) -> None:
        batch, slots, _ = self._boxes.shape
        if counts is not None:
            bad_value("counts", "None with boxes given as a list", counts)
        _check_list(boxes, "boxes", batch, slots, "max_boxes", (4,), self._boxes)
        _check_list(labels, "labels", batch, slots, "max_boxes", (), self._labels, INTEGERS)
        for index, (image, label) in enumerate(zip(boxes, labels, strict=True)):
            if len(image) != len(label):
                bad_value(f"labels[{index}]", f"{len(image)} labels, one a box", label)


class _State:
    """A copy of what a training step changes."""

    def __init__(self, model: SingleStageDetector, optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        trained = (p for group in optimizer.param_groups for p in group["params"])
        tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers(), trained)}
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
        self._moments = {id(value): value.clone() for value in _moments(optimizer)}
        self._scale = None if scaler is None else scaler.state_dict()

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.copy_(value)
            for moment in _moments(self._optimizer):
                # One that the warm-up created starts at 0 in every optimiser that is accepted.
                known = self._moments.get(id(moment))
                moment.zero_() if known is None else moment.copy_(known)
        if self._scaler is not None:
            self._scaler.load_state_dict(self._scale)


def _set_rates(optimizer: Optimizer, rates: Sequence[Any]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _moments(optimizer: Optimizer) -> list[Tensor]:
    """The tensors that an optimiser keeps between steps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def check_optimizer(optimizer: Any, scaler: Any) -> None:
    """Refuse optimisers that cannot be recorded, because they read the learning rate or their state on the host."""
    if not isinstance(optimizer, (SGD, Adam, AdamW)):
        bad_type("optimizer", "a torch.optim.SGD, Adam or AdamW", optimizer)
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        bad_type("scaler", "a torch.amp.GradScaler, or None", scaler)
    for number, group in enumerate(optimizer.param_groups):
        name, kind = f"optimizer.param_groups[{number}]", type(optimizer).__name__
        if isinstance(optimizer, SGD):
            if not group["fused"]:
                # foreach and the plain loop take `alpha=lr`, a number: a tensor would be read on the host.
                bad_value(name, "SGD with fused=True, which reads its learning rate on the device", _shown(group))
            if group["momentum"] and group["dampening"]:
                # With it the first step differs from the others; a graph records one form.
                bad_value(name, "dampening=0", _shown(group))
        elif not group["capturable"]:
            bad_value(name, f"{kind} with capturable=True, which counts its steps on the device", _shown(group))
        if scaler is not None and not group["fused"]:
            # Otherwise the scaler itself decides on the host whether to make the step.
            bad_value(name, f"{kind} with fused=True, since there is a scaler", _shown(group))


def _shown(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("fused", "foreach", "capturable", "dampening") if name in group}


def _check_list(
    value: Any,
    name: str,
    batch: int,
    slots: int,
    limit: str,
    last: tuple[int, ...],
    like: Tensor,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> None:
    """B tensors (at most ``slots``, *last)."""
    if not isinstance(value, (list, tuple)):
        bad_type(name, f"a list of {batch} tensors, or one padded tensor", value)
    if len(value) != batch:
        bad_value(name, f"{batch} tensors, one an image", value)
    for index, image in enumerate(value):
        check_tensor(image, f"{name}[{index}]", shape=(None, *last), dtypes=dtypes, device=like.device)
        if len(image) > slots:
            bad_value(f"{name}[{index}]", f"at most {limit} = {slots} boxes", image)


def _fill_rows(padded: Tensor, rows: Sequence[Tensor], numbers: Sequence[int]) -> None:
    """Write the rows of each image to the beginning of its row in (B, slots, …), in one go."""
    slots = padded.shape[1]
    places = [image * slots + slot for image, number in enumerate(numbers) for slot in range(number)]
    if places:
        where = to_device(places, torch.int64, padded.device)
        padded.flatten(0, 1).index_copy_(0, where, torch.cat(list(rows)).to(padded.dtype))
