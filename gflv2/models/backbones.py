"""Backbones: timm feature extractors with frozen stages, BatchNorm in eval mode and deformable convolutions."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gflv2.config import BackboneConfig
from gflv2.extras import missing_package
from gflv2.models.deform_conv import DeformConv2d
from gflv2.models.pretrained import create_pretrained
from gflv2.ops.checks import bad_value, check_choice

try:
    import timm
    from timm.models.res2net import Bottle2neck
    from timm.models.resnet import Bottleneck

    from gflv2.models.shufflenet import NAME as SHUFFLENET
    from gflv2.models.shufflenet import ShuffleNetV2
except ModuleNotFoundError as error:
    raise missing_package(error, "The detector's backbone") from error


def build_backbone(config: BackboneConfig, *, pretrained: bool = False) -> nn.Module:
    """A timm model that returns the feature levels ``config.out_indices``; its ``state_dict`` has timm's key names.

    Args:
        config: the backbone's settings.
        pretrained: load the start weights that ``config.pretrained`` names.

    Returns:
        a module with ``feature_info.channels()`` and ``feature_info.reduction()`` (strides).

    Raises:
        ValueError: no such timm model or feature level, or a setting that this model cannot have.
        RuntimeError, ModuleNotFoundError: start weights out of reach (see ``create_pretrained``).
    """
    ours = config.name == SHUFFLENET
    if not ours and ("." in config.name or not timm.is_model(config.name)):
        near = timm.list_models(f"*{config.name.split('.')[0][:6]}*")[:8]
        bad_value(
            "backbone.name", f"a timm model, without tag (for example {', '.join(near) or 'resnet50'})", config.name
        )
    options = {"features_only": True, "out_indices": tuple(config.out_indices)}
    if not pretrained:
        backbone = ShuffleNetV2(config.out_indices) if ours else _create(config, options)
    elif config.pretrained is None:
        bad_value("backbone.pretrained", "a timm tag or 'package:NAME', since start weights were asked for", None)
    else:
        backbone = create_pretrained(config.name, config.pretrained, options)
    unpool_first_split(backbone)
    for stage in config.deform.stages:
        make_deformable(backbone, stage, config.deform.version)
    freeze_stages(backbone, config.frozen_stages)
    return backbone


def _create(config: BackboneConfig, options: dict) -> nn.Module:
    try:
        return timm.create_model(config.name, pretrained=False, **options)
    except (RuntimeError, AssertionError, IndexError, TypeError, ValueError) as error:
        expected = f"a timm model that gives the feature levels backbone.out_indices = {config.out_indices} ({error})"
        bad_value("backbone.name", expected, config.name)


def unpool_first_split(backbone: nn.Module) -> None:
    """Res2Net: let the last split of the first block of the first stage pass without pooling.

    The published detectors pool that split only where the block has stride 2, and their weights need it so; timm's
    class pools it in the first block of every stage.
    """
    for module in backbone.modules():
        if isinstance(module, Bottle2neck) and isinstance(module.pool, nn.AvgPool2d) and module.pool.stride == 1:
            module.pool = nn.Identity()


def make_deformable(backbone: nn.Module, stage: int, version: int) -> None:
    """Replace the 3×3 convolution of every block of one stage (Res2Net: all of a block's) by a deformable one.

    Args:
        stage: 2 to 5, named by the level it gives: 3 is the stage that ends in C3 (stride 8).
        version: 1 (offsets) or 2 (offsets and masks).
    """
    check_choice(stage, "backbone.deform.stages", (2, 3, 4, 5))
    blocks = getattr(backbone, f"layer{stage - 1}", None)
    if blocks is None or not all(isinstance(block, (Bottleneck, Bottle2neck)) for block in blocks):
        expected = "stages of ResNet, ResNeXt or Res2Net with bottleneck blocks"
        bad_value("backbone.deform.stages", expected, f"stage {stage} of a backbone without them")
    for block in blocks:
        if isinstance(block, Bottle2neck):
            block.convs = nn.ModuleList(DeformConv2d.from_conv(conv, version) for conv in block.convs)
        else:
            block.conv2 = DeformConv2d.from_conv(block.conv2, version)


def frozen_modules(backbone: nn.Module, stages: int) -> list[nn.Module]:
    """The modules of the stem and of the first ``stages`` stages. Stage 1 ends at stride 4, stage 2 at stride 8, ….

    Modules count in the order of registration, which in timm's feature extractors is the order in which they run.

    Raises:
        ValueError: timm does not name the module in which that stage ends.
    """
    if stages <= 0:
        return []
    modules = list(backbone.named_modules())
    names = [name for name, _ in modules]
    ends = [info["module"] for info in backbone.feature_info.info if info["reduction"] == 2 ** (stages + 1)]
    # timm flattens "layers.0" to "layers_0" where a model's stages are nested, and wraps some models as "model".
    candidates = [n for end in reversed(ends) for n in (end, end.replace(".", "_"), f"model.{end}")]
    end = next((name for name in candidates if name in names), None)
    if end is None:
        bad_value(
            "backbone.frozen_stages",
            "0 (nothing frozen), as this timm model does not name where that stage ends",
            stages,
        )
    last = max(index for index, name in enumerate(names) if name == end or name.startswith(end + "."))
    return [module for _, module in modules[: last + 1]]


def freeze_stages(backbone: nn.Module, stages: int) -> None:
    """Parameters of the stem and of the first ``stages`` stages get ``requires_grad = False``."""
    for module in frozen_modules(backbone, stages):
        # Own parameters only: the list starts with modules that hold later stages too.
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def keep_norms_in_eval(backbone: nn.Module, config: BackboneConfig) -> None:
    """After ``train()``: put BatchNorm back to eval mode, everywhere (``norm_eval``) or in the frozen stages.

    They use their running statistics; the affine parameters of the stages that are not frozen train all the same.
    """
    modules = backbone.modules() if config.norm_eval else frozen_modules(backbone, config.frozen_stages)
    for module in modules:
        if isinstance(module, _BatchNorm):
            module.eval()
