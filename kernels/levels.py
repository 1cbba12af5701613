"""Levels in Triton: the table of them that travels with a launch, and how a program finds its place in it.

Every kernel covers all levels of the whole batch in one launch. Programs are numbered image-major. Within an image each
level has ceil(count / cells) of them, one after the other, so that no block spans two levels. A kernel opens so:

    block = find_block(levels, blocks, BLOCK)                           # which image, which level
    cells, live, rows = cells_of(block, block.number, total, BLOCK)     # which cells, and their rows of the result
    logits = open_map(every, levels, block, cells, AXIS, TOUCHING)      # where they lie in memory
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

MAX_LEVELS = 8

# Columns of the table: sizes in cells, strides in elements.
WIDTH = tl.constexpr(0)
COUNT = tl.constexpr(1)
IMAGE_STRIDE = tl.constexpr(2)
SIDE_STRIDE = tl.constexpr(3)
BIN_STRIDE = tl.constexpr(4)
ROW_STRIDE = tl.constexpr(5)
COLUMN_STRIDE = tl.constexpr(6)

# Triton ignores `do_not_specialize` inside a tuple: a 1 there becomes a constant and a multiple of 16 an attribute, so
# that almost every image size would compile the kernel anew. Sealed integers are odd and never 1, and wider than 32
# bits, so that their type does not change with their size either.
SEAL = tl.constexpr((1 << 40) + 1)


def seal(value: int) -> int:
    """An integer as it travels in a tuple of kernel arguments; a kernel reads it with ``unseal``."""
    return 2 * value + SEAL.value


class Extent(NamedTuple):
    """The size of a launch over levels."""

    blocks: int  # programs an image
    batch: int
    points: int  # of an image: A

    @property
    def programs(self) -> int:
        return self.blocks * self.batch


def extent_of(tensors: Sequence[Tensor], cells: int) -> Extent:
    """For levels (B, 4·R, H_l, W_l), or [rows (M, 4, R)], which are one image. ``cells``: of a program."""
    counts = [_describe(tensor)[1] for tensor in tensors]
    batch = 1 if tensors[0].dim() == 3 else tensors[0].shape[0]
    return Extent(sum(-(-count // cells) for count in counts), batch, sum(counts))


def level_table(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """The kernel's table for levels (B, 4·R, H_l, W_l), or for [rows (M, 4, R)], which are one level of width M."""
    return tuple(tuple(map(seal, _describe(tensor))) for tensor in tensors)


def level_arguments(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Levels as ``MAX_LEVELS`` + 1 kernel arguments: the tensors, and their table. No levels: Nones.

    The tensors are arguments of their own, not a tuple: only so can Triton be kept from specialising on their
    alignment.
    """
    return (*tensors, *[None] * (MAX_LEVELS - len(tensors)), level_table(tensors) or None)


def _describe(tensor: Tensor) -> tuple[int, ...]:
    """(width, count, image, side, bin, row, column stride) of one level."""
    if tensor.dim() == 3:
        rows = tensor.shape[0]
        row, side, bin_ = tensor.stride()
        return rows, rows, 0, side, bin_, 0, row
    _, channels, height, width = tensor.shape
    image, channel, row, column = tensor.stride()
    return width, height * width, image, (channels // 4) * channel, channel, row, column


def bins_are_last(tensors: Sequence[Tensor]) -> bool:
    """Whether neighbouring bins lie closer in memory than neighbouring cells do, judged by the largest level."""
    width, _, _, _, bin_, row, column = max((_describe(tensor) for tensor in tensors), key=lambda level: level[1])
    # In a level one cell wide the next cell is in the next row; rows have no second dimension (row stride 0).
    return bin_ < (row if width == 1 and row else column)


def neighbours_touch(tensors: Sequence[Tensor], bins_last: bool) -> bool:
    """Whether the tile's last dimension, bins or cells, is without gaps in every level: its stride is a constant 1.

    Only from a constant can Triton tell which dimension to spread over the threads of a warp: with strides that it does
    not know, versions differ in what they choose.
    """
    return all(_touch(*_describe(tensor), bins_last) for tensor in tensors)


def _touch(width: int, count: int, _: int, __: int, bin_: int, row: int, column: int, bins_last: bool) -> bool:
    if bins_last:
        return bin_ == 1
    one_row = count == width
    return count <= 1 or ((column == 1 or width == 1) and (row == width or one_row))


@triton.jit
def unseal(value):
    return (value - SEAL) >> 1


@triton.jit
def pick(values, index, COUNT_OF: tl.constexpr):
    """``values[index]`` among the first COUNT_OF of a tuple, for an index known only at run time."""
    chosen = values[0]
    for candidate in tl.static_range(1, COUNT_OF):
        chosen = tl.where(index == candidate, values[candidate], chosen)
    return chosen


@triton.jit
def pick_column(table, level, COLUMN: tl.constexpr):
    """One column of the table of levels at a level known only at run time."""
    chosen = table[0][COLUMN]
    for candidate in tl.static_range(1, len(table)):
        chosen = tl.where(level == candidate, table[candidate][COLUMN], chosen)
    return unseal(chosen)


class Block(NamedTuple):
    """Where a program works."""

    image: Any  # int64
    level: Any
    first_block: Any  # of the level, within the image
    number: Any  # of the block, within the level
    first_point: Any  # of the level, within the image; int64
    size: Any  # cells of the level; int64


@triton.jit
def find_block(levels, blocks, CELLS: tl.constexpr):
    """The block of this program. ``blocks``: programs an image; CELLS: of a block."""
    program = tl.program_id(0)
    image = program // blocks
    place = program - image * blocks
    level = 0
    first_block = place * 0
    first_point = first_block.to(tl.int64)
    end_block = first_block
    end_point = first_point
    for candidate in tl.static_range(len(levels)):
        # An empty level has no block: the next one begins where it does and takes over.
        reached = place >= end_block
        level = tl.where(reached, candidate, level)
        first_block = tl.where(reached, end_block, first_block)
        first_point = tl.where(reached, end_point, first_point)
        count = unseal(levels[candidate][COUNT])
        end_block += ((count + CELLS - 1) // CELLS).to(tl.int32)
        end_point += count
    size = pick_column(levels, level, COUNT)
    return Block(image.to(tl.int64), level, first_block, place - first_block, first_point, size)


@triton.jit
def cells_of(block, number, total, BLOCK: tl.constexpr):
    """BLOCK cells of a level (flat indices y·W + x, int32), which of them exist, and their rows of the result.

    ``number``: how many times BLOCK cells come before them; ``total``: points of an image.
    """
    cells = number * BLOCK + tl.arange(0, BLOCK)
    return cells, cells < block.size, block.image * total + block.first_point + cells


@triton.jit
def place_of(levels, level, cells):
    """y and x of cells."""
    width = pick_column(levels, level, WIDTH).to(tl.int32)
    y = cells // width
    return y, cells - y * width


class Map(NamedTuple):
    """Cells in the memory of one level."""

    pointer: Any
    offsets: Any  # of the cells' first bins
    side_stride: Any
    bin_stride: Any


@triton.jit
def open_map(every, levels, block, cells, AXIS: tl.constexpr, TOUCHING: tl.constexpr):
    """Where cells of a block lie.

    ``every``: tensors of all levels, ``levels``: their table. AXIS: of the bins in the tile, 0 with the cells last
    (NCHW), 1 with the bins last. TOUCHING: neighbours in the tile's last dimension are neighbours in memory.
    """
    offsets = block.image * pick_column(levels, block.level, IMAGE_STRIDE)
    if TOUCHING and AXIS == 0:
        offsets += cells
    else:
        y, x = place_of(levels, block.level, cells)
        offsets += y.to(tl.int64) * pick_column(levels, block.level, ROW_STRIDE)
        offsets += x.to(tl.int64) * pick_column(levels, block.level, COLUMN_STRIDE)
    bin_stride = 1
    if AXIS == 0 or not TOUCHING:
        bin_stride = pick_column(levels, block.level, BIN_STRIDE)
    pointer = pick(every, block.level, len(levels))
    return Map(pointer, offsets, pick_column(levels, block.level, SIDE_STRIDE), bin_stride)


@triton.jit
def _odd(every, levels, block):
    """Whether a pair of neighbouring cells of 16 bits may begin at an odd place of a level, or its last one be cut."""
    steps = pick_column(levels, block.level, IMAGE_STRIDE) | pick_column(levels, block.level, SIDE_STRIDE)
    steps |= pick_column(levels, block.level, BIN_STRIDE) | block.size
    return ((steps & 1) | (pick(every, block.level, len(levels)).to(tl.int64) & 3)) != 0


@triton.jit
def has_pairs(every, levels, others, other_levels, block, AXIS: tl.constexpr, TOUCHING: tl.constexpr):
    """Whether this block's cells of 16 bits can be read, and the others written, two at once: 4 bytes.

    ``others``: a second map with its table, of Nones where there is none. False, which Triton folds away with the
    branch behind it, where that is known for all levels: with the bins last, with gaps, for float32.
    """
    found = False
    if AXIS == 0 and TOUCHING and every[0].dtype.element_ty.primitive_bitwidth == 16:
        found = not _odd(every, levels, block)
        if others[0] is not None:
            found = found & (not _odd(others, other_levels, block))
    return found


@triton.jit
def _even(value):
    """The same even number, so written that Triton sees it."""
    return (value >> 1) * 2


@triton.jit
def open_pairs(every, levels, block, cells):
    """As `open_map` where `has_pairs`, and which cells exist: Triton then reads and writes pairs of them."""
    start = block.image * _even(pick_column(levels, block.level, IMAGE_STRIDE))
    pointer = tl.multiple_of(pick(every, block.level, len(levels)) + start, 4)
    side_stride = _even(pick_column(levels, block.level, SIDE_STRIDE))
    bin_stride = _even(pick_column(levels, block.level, BIN_STRIDE))
    return Map(pointer, cells.to(tl.int64), side_stride, bin_stride), cells < _even(block.size)


@triton.jit
def scale_of(scales, level):
    """The factor of a level's logits, 1 without ``scales``."""
    scale = 1.0
    if scales is not None:
        scale = tl.load(scales + level)
    return scale
