"""The hot paths of the kernels that go through every class of every point, ``qfl`` and ``focal``."""

from __future__ import annotations

from tests.kernels.hot import CELLS, CLASSES, LAST, Hot, of_cells, programs

_LOGITS = CLASSES * CELLS
# CUDA: 40 classes of two points a thread, some at a time. Cold is the logarithm, which the usual negative goes without,
# and what reads one element at a time.
_LOGARITHM = r"0x3f3504f3|I2FP|^LDG\.E\.U16"
_GROUP = r"^ISETP\.LT\.U32\.OR"  # for each of the two points: is its label among the next classes?


def hot_paths(op: str, forward: str, backward: str, *, at_a_time: int, bytes_of_cell: int) -> list[Hot]:
    """Both directions of an operation in CUDA and in Triton.

    Args:
        forward, backward: pattern of the instance in CUDA.
        at_a_time: classes that a thread takes at a time there.
        bytes_of_cell: what a point has beside its logits, forward; a gradient has four more.
    """
    read, written = 2 * _LOGITS + bytes_of_cell * CELLS, 4 * _LOGITS + (bytes_of_cell + 4) * CELLS
    triton = (f"kernels/{op}.py", "levels C=80 bfloat16")
    return [
        Hot(
            *(op, "forward", f"{op}.cu", f"{op}_points", forward),
            *(programs(128), read, _LOGITS),
            shared=4608,
            loops={_GROUP: CLASSES / at_a_time},
            cold=_LOGARITHM,
            last={r"^F2F\.F64": programs(128) / 128, **LAST},
        ),
        Hot(
            *(op, "backward", f"{op}.cu", f"{op}_points", backward),
            *(programs(128), written, _LOGITS),
            shared=4608,
            loops={_GROUP: CLASSES / at_a_time},
            cold=_LOGARITHM,
        ),
        Hot(
            *(op, "forward", triton[0], f"{op}_forward_kernel", triton[1]),
            *(of_cells, read, _LOGITS),
            trips=CLASSES / 8,
        ),
        Hot(
            *(op, "forward", triton[0], "total_kernel", triton[1]),
            *(1, 4 * programs(128), programs(128)),
            trips=(programs(128) / 2048,),
        ),
        Hot(
            *(op, "backward", triton[0], f"{op}_backward_kernel", triton[1]),
            *(of_cells, written, _LOGITS),
            trips=CLASSES / 8,
        ),
    ]
