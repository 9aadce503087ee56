"""Sparse 3D convolution in plain PyTorch: gather rows, multiply matrices, scatter.

Graham et al., "3D Semantic Segmentation with Submanifold Sparse Convolutional Networks", CVPR 2018; Yan et al.,
"SECOND: Sparsely Embedded Convolutional Detection", Sensors 2018.  Weights lie as in spconv 2, (Cout, kz, ky, kx, Cin),
and parameters are named as in Cc-Hy/CMKD, pcdet/models/backbones_3d/spconv_backbone.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NoReturn, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distill3d.errors import UserError
from distill3d.layers.distributed import world_size
from distill3d.settings import Between, Channels, Layers, Stride, added, is_in_range
from distill3d.transfers import constant

#: Of every batch norm on rows (spconv_backbone.py).
EPSILON, MOMENTUM = 1e-3, 0.01
#: Of 64 channels each, 2 MiB of float32: with more, gathered rows fall out of the cache before they are multiplied.
CACHED_PAIRS = 8192

#: Along z, y, x.
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Kernel:
    """Size, stride and zero padding of a convolution along z, y, x."""

    size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)

    @classmethod
    def centred(cls, size: Triple) -> Kernel:
        """A kernel whose outputs lie where its inputs do.

        Raises:
            ValueError: a size is even.
        """
        if any(n % 2 == 0 for n in size):
            raise ValueError(f"a submanifold kernel has a centre, so its sizes must be odd, got {size}")
        z, y, x = (n // 2 for n in size)
        return cls(size, padding=(z, y, x))

    @property
    def offsets(self) -> int:
        """Places within the kernel."""
        return math.prod(self.size)

    def output_shape(self, shape: Triple) -> Triple:
        """Cells of the output along z, y, x.

        Raises:
            ValueError: the kernel is larger than the padded input.
        """
        z, y, x = (
            (n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, self.size, self.stride, self.padding, strict=True)
        )
        if min(z, y, x) < 1:
            raise ValueError(f"a grid of {shape} cells (z, y, x) is too small for {self}")
        return z, y, x


@dataclass(frozen=True)
class Rulebook:
    """Which input row meets which output row: pairs grouped by kernel offset, z slowest and x fastest.

    Within one offset a row occurs at most once on either side.
    """

    source: Int64[Tensor, "pairs"]  # rows of the input
    target: Int64[Tensor, "pairs"]  # rows of the output
    counts: tuple[int, ...]  # pairs of each offset
    coords: Int64[Tensor, "m 4"]  # b, z, y, x of the outputs
    shape: Triple  # cells of the output grid along z, y, x


@dataclass(frozen=True)
class SparseTensor:
    """Features of the active cells of a grid; all other cells are 0.

    Rows may stand in any order, each cell at most once.  ``rulebooks`` is shared by all tensors with these coordinates
    (``with_features``), so that the layers of one resolution look their neighbours up once.
    """

    features: Float[Tensor, "n c"]
    coords: Int64[Tensor, "n 4"]  # b, z, y, x
    shape: Triple  # cells along z, y, x
    batch_size: int  # of the batch, also where its last samples have no active cell
    rulebooks: dict[Hashable, Rulebook] = field(default_factory=dict, repr=False)

    def with_features(self, features: Float[Tensor, "n d"]) -> SparseTensor:
        """Other features at the same cells."""
        return replace(self, features=features)

    def keys(self) -> Int64[Tensor, "n"]:
        """The number of each row's cell, counted through batch, z, y, x."""
        b, z, y, x = self.coords.unbind(1)
        depth, height, width = self.shape
        return ((b * depth + z) * height + y) * width + x

    def dense(self) -> Float[Tensor, "b c z y x"]:
        """The whole grid, with zeros where nothing is active."""
        rows = self.features.new_zeros(self.batch_size * math.prod(self.shape), self.features.shape[1])
        rows = rows.index_copy(0, self.keys(), self.features)
        return rows.unflatten(0, (self.batch_size, *self.shape)).permute(0, 4, 1, 2, 3)

    def rulebook(self, key: Hashable, build: Callable[[SparseTensor], Rulebook]) -> Rulebook:
        """The rulebook under ``key``, built at its first use."""
        if key not in self.rulebooks:
            self.rulebooks[key] = build(self)
        return self.rulebooks[key]


# ---------------------------------------------------------------------------------------------------- who meets whom


def submanifold_rules(x: SparseTensor, size: Triple) -> Rulebook:
    """Pairs of a convolution whose outputs are its inputs, row by row.

    Raises:
        ValueError: a size is even, a row lies off the grid, or two rows are one cell.
    """
    kernel = Kernel.centred(size)
    keys, order = torch.sort(x.keys())
    # Neighbours are mutual: what the offsets before the centre find, those behind it find in reverse.
    found, places = _neighbours(x, kernel, keys)
    twice = (keys[1:] == keys[:-1]).any()
    off_grid, is_twice, *counts = torch.stack((_off_grid(x).any(), twice, *found.sum(1))).tolist()
    if off_grid:
        _refuse_off_grid(x)
    if is_twice:
        raise ValueError("a sparse tensor has two rows for one cell, expected one")
    offset, source = _nonzero(found, sum(counts))
    target = order[places[offset, source]]
    centre = torch.arange(len(keys), device=keys.device)
    return Rulebook(
        torch.cat((source, centre, target.flip(0))),
        torch.cat((target, centre, source.flip(0))),
        (*counts, len(keys), *reversed(counts)),
        x.coords,
        x.shape,
    )


def _neighbours(
    x: SparseTensor, kernel: Kernel, keys: Int64[Tensor, "n"]
) -> tuple[Bool[Tensor, "half n"], Int64[Tensor, "half n"]]:
    """Which rows have an active neighbour at each offset before the centre, and its place among the sorted ``keys``.

    Neighbours along x have consecutive keys, so that one search finds where all of them stand.
    """
    depth, height, width = kernel.size
    lines = (depth * height) // 2 + 1  # of the kernel, along x, up to the one with the centre
    through = Kernel((depth, height, 1), padding=(kernel.padding[0], kernel.padding[1], 0))
    reached, inside = (t[:lines] for t in _reached(x.coords, through, x.shape))
    column = x.coords[:, 3]
    end = torch.cat((keys, constant([torch.iinfo(keys.dtype).min], keys)))  # no cell's
    place = torch.searchsorted(keys, reached - width // 2)
    places, active = [], []
    for step in range(-(width // 2), width // 2 + 1):
        found = end[place] == reached + step
        places.append(place)
        active.append(found & inside & (column + step >= 0) & (column + step < x.shape[2]))
        place = place + found
    # The first offset reaches farthest ahead.
    half = kernel.offsets // 2
    return (
        torch.stack(active[::-1], dim=1).flatten(0, 1)[:half], torch.stack(places[::-1], dim=1).flatten(0, 1)[:half]
    )  # fmt: skip


def _nonzero(found: Bool[Tensor, "k n"], count: int) -> tuple[Int64[Tensor, "pairs"], Int64[Tensor, "pairs"]]:
    """Where something was found, row by row; nobody waits for their number, which is known."""
    if found.is_cpu:
        offset, row = found.nonzero(as_tuple=True)
    else:
        offset, row = torch.nonzero_static(found, size=count).unbind(1)
    return offset, row


def strided_rules(x: SparseTensor, kernel: Kernel) -> Rulebook:
    """Pairs of a convolution whose outputs are all cells that see an active input, sorted by batch, z, y, x.

    Raises:
        ValueError: the kernel is larger than the grid, or a row lies off the grid.
    """
    shape = kernel.output_shape(x.shape)
    reached, inside = _reached(x.coords, kernel, shape)
    off_grid, *counts = torch.stack((_off_grid(x).any(), *inside.sum(1))).tolist()
    if off_grid:
        _refuse_off_grid(x)
    offset, source = _nonzero(inside, sum(counts))
    keys, target = torch.unique(reached[offset, source], return_inverse=True)
    return Rulebook(source, target, tuple(counts), _coords_of(keys, shape), shape)


def _reached(
    coords: Int64[Tensor, "n 4"], kernel: Kernel, shape: Triple
) -> tuple[Int64[Tensor, "k n"], Bool[Tensor, "k n"]]:
    """The output cell that each input reaches through each offset, as key, and whether there is one on the grid."""
    keys = coords[None, :, 0]
    inside = torch.ones_like(keys, dtype=torch.bool)
    for axis in range(3):
        offsets = torch.arange(kernel.size[axis], device=coords.device)[:, None]
        shifted = coords[:, 1 + axis] + kernel.padding[axis] - offsets
        place = shifted.div(kernel.stride[axis], rounding_mode="floor")
        fits = (place * kernel.stride[axis] == shifted) & (place >= 0) & (place < shape[axis])
        keys = (keys[:, None] * shape[axis] + place).flatten(0, 1)
        inside = (inside[:, None] & fits).flatten(0, 1)
    return keys, inside


def _coords_of(keys: Int64[Tensor, "m"], shape: Triple) -> Int64[Tensor, "m 4"]:
    """b, z, y, x of cells by number."""
    columns = []
    for cells in reversed(shape):
        columns.append(keys % cells)
        keys = keys.div(cells, rounding_mode="floor")
    return torch.stack((keys, *reversed(columns)), dim=1)


def _off_grid(x: SparseTensor) -> Bool[Tensor, "n"]:
    return ((x.coords < 0) | (x.coords >= constant((x.batch_size, *x.shape), x.coords))).any(1)


def _refuse_off_grid(x: SparseTensor) -> NoReturn:
    row = x.coords[_off_grid(x)][0].tolist()
    raise ValueError(f"row (b, z, y, x) = {row} lies off a batch of {x.batch_size} grids of {x.shape} cells (z, y, x)")


# --------------------------------------------------------------------------------------------------- the convolution


class _Convolve(torch.autograd.Function):
    """Keeps the rows that it was given and nothing else: what it gathers is gathered again for the gradients."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rules: Rulebook) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.rules = rules
        return _scatter_products(features, weight, rules.source, rules.target, rules.counts, len(rules.coords))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        rules, gradient = ctx.rules, gradients[0]
        for_features = for_weight = None
        with torch.autocast(gradient.device.type, enabled=False):  # a backward pass may run within autocast
            if ctx.needs_input_grad[0]:
                n = len(features)
                for_features = _scatter_products(gradient, weight.mT, rules.target, rules.source, rules.counts, n)
            if ctx.needs_input_grad[1]:
                for_weight = _products_of_pairs(features, gradient, rules)
        return for_features, for_weight, None


def _scatter_products(
    rows: Float[Tensor, "n c"],
    weight: Float[Tensor, "k c d"],
    source: Int64[Tensor, "pairs"],
    target: Int64[Tensor, "pairs"],
    counts: tuple[int, ...],
    outputs: int,
) -> Float[Tensor, "m d"]:
    """Sum over pairs of rows[source] @ weight[offset], at the target.

    Added up offset by offset, in which every target occurs once: always in the same order, with buffers of one block.
    """
    out = rows.new_zeros(outputs, weight.shape[2])
    size = _block(rows, counts)
    gathered, products = rows.new_empty(size, rows.shape[1]), rows.new_empty(size, weight.shape[2])
    for matrix, sources, targets in zip(weight, source.split(counts), target.split(counts), strict=True):
        for some, to in zip(sources.split(size), targets.split(size), strict=True):
            n = len(some)
            torch.index_select(rows, 0, some, out=gathered[:n])
            torch.mm(gathered[:n], matrix, out=products[:n])
            out.index_add_(0, to, products[:n])
    return out


def _products_of_pairs(
    rows: Float[Tensor, "n c"], gradient: Float[Tensor, "m d"], rules: Rulebook
) -> Float[Tensor, "k c d"]:
    """Sum over each offset's pairs of the outer product of input row and output gradient."""
    total = rows.new_zeros(len(rules.counts), rows.shape[1], gradient.shape[1])
    size = _block(rows, rules.counts)
    left, right = rows.new_empty(size, rows.shape[1]), rows.new_empty(size, gradient.shape[1])
    for product, sources, targets in zip(
        total, rules.source.split(rules.counts), rules.target.split(rules.counts), strict=True
    ):
        for some, others in zip(sources.split(size), targets.split(size), strict=True):
            n = len(some)
            torch.index_select(rows, 0, some, out=left[:n])
            torch.index_select(gradient, 0, others, out=right[:n])
            product.addmm_(left[:n].mT, right[:n])
    return total


def _block(rows: Tensor, counts: tuple[int, ...]) -> int:
    """Pairs that are worked on at once: on a CPU what its cache holds, else all of an offset."""
    most = max(1, *counts)
    return min(most, CACHED_PAIRS) if rows.is_cpu else most


def convolve(
    features: Float[Tensor, "n c"],
    weight: Float[Tensor, "d kz ky kx c"],
    bias: Float[Tensor, "d"] | None,
    rules: Rulebook,
) -> Float[Tensor, "m d"]:
    """Rows of the output, in float32 or better whatever autocast says; the bias acts on active cells only."""
    with torch.autocast(features.device.type, enabled=False):
        kind = torch.promote_types(features.dtype, torch.float32)
        by_offset = weight.to(kind).flatten(1, 3).permute(1, 2, 0)  # (k, c, d)
        rows = cast(Tensor, _Convolve.apply(features.to(kind), by_offset, rules))
        return rows if bias is None else rows + bias.to(kind)


class _SparseConvolution(nn.Module):
    """Weight (Cout, kz, ky, kx, Cin) and bias (Cout), initialised as torch initialises a Conv3d."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Kernel, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels_out, *kernel.size, channels_in))
        self.bias = nn.Parameter(torch.empty(channels_out)) if bias else None
        bound = 1 / math.sqrt(kernel.offsets * channels_in)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Moves weights as matrices: modules are moved to channels last, which torch refuses for five dimensions."""

        def apply(tensor: Tensor) -> Tensor:
            return fn(tensor.flatten(1)).unflatten(1, tensor.shape[1:]) if tensor.dim() > 2 else fn(tensor)

        return super()._apply(apply, recurse)


class SubMConv3d(_SparseConvolution):
    """Submanifold convolution, stride 1: active cells stay the same, and so does the order of rows."""

    def __init__(self, channels_in: int, channels_out: int, size: int = 3, bias: bool = False) -> None:
        super().__init__(channels_in, channels_out, Kernel.centred((size, size, size)), bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features of ``channels_out`` at the same cells."""
        size = self.kernel.size
        rules = x.rulebook(("submanifold", size), lambda tensor: submanifold_rules(tensor, size))
        return x.with_features(convolve(x.features, self.weight, self.bias, rules))


class SparseConv3d(_SparseConvolution):
    """Strided convolution: a cell of the output is active if its window holds an active input."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Kernel, bias: bool = False) -> None:
        super().__init__(channels_in, channels_out, kernel, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features of ``channels_out`` on the coarser grid, rows sorted by batch, z, y, x."""
        rules = x.rulebook(self.kernel, lambda tensor: strided_rules(tensor, self.kernel))
        rows = convolve(x.features, self.weight, self.bias, rules)
        return SparseTensor(rows, rules.coords, rules.shape, x.batch_size)


# ------------------------------------------------------------------------------------------------------ the backbone


def row_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm of rows for ``normalise_rows``: a 2D one, for those are shared between processes (distributed.py)."""
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)


def normalise_rows(norm: nn.BatchNorm2d, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Batch norm over rows.  Fewer than two have no variance to learn from: they take the running statistics."""
    if norm.training and len(rows) < 2 and world_size() == 1:
        return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return norm(rows[:, :, None, None])[:, :, 0, 0]


class SparseConvNorm(nn.Sequential):
    """Convolution, batch norm on rows, ReLU; the first two are children 0 and 1."""

    def __init__(self, conv: SubMConv3d | SparseConv3d) -> None:
        super().__init__(conv, row_norm(len(conv.weight)))

    def forward(self, input: SparseTensor) -> SparseTensor:
        conv, norm = self
        x = conv(input)
        return x.with_features(normalise_rows(cast(nn.BatchNorm2d, norm), x.features).relu())


class SparseBasicBlock(nn.Module):
    """Two submanifold convolutions around an identity.  They have biases, as released, though norms follow them; those
    of open-mmlab/mmdetection3d (mmdet3d/models/middle_encoders/sparse_encoder.py) have none."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, bias=bias)
        self.bn1 = row_norm(channels)
        self.conv2 = SubMConv3d(channels, channels, bias=bias)
        self.bn2 = row_norm(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        hidden = x.with_features(normalise_rows(self.bn1, self.conv1(x).features).relu())
        change = normalise_rows(self.bn2, self.conv2(hidden).features)
        return x.with_features((change + x.features).relu())


@dataclass(frozen=True)
class SparseResNetConfig:
    """Stages of the backbone; the defaults are those of VoxelResBackBone8x_c64 (spconv_backbone.py)."""

    inputs: Channels = 4  # channels of a voxel
    channels: tuple[Channels, ...] = (16, 32, 64, 64)  # of each stage
    strides: tuple[Stride, ...] = (2, 2, 2)  # with which the stages after the first begin, along every axis
    padding_z: tuple[Annotated[int, Between(0, 16)], ...] = (1, 1, 0)  # of the same convolutions; along y and x it is 1
    blocks: Layers = 2  # residual blocks or plain convolutions of each stage
    outputs: Channels = 64  # channels of each of the output's layers
    block_bias: bool = True  # of the residual blocks' convolutions
    #: ``plain`` stages are single convolutions, as in VoxelBackBone8x of open-mmlab/OpenPCDet; the one that the voxels
    #: go through counts as the first stage's first.
    block: Literal["residual", "plain"] = added("residual")

    def __post_init__(self) -> None:
        if is_in_range(self) and not len(self.channels) - 1 == len(self.strides) == len(self.padding_z):
            raise UserError(
                f"{len(self.channels)} stages begin with one stride and one padding each, except the first, "
                f"got {len(self.strides)} and {len(self.padding_z)}"
            )

    @property
    def stride(self) -> int:
        """Voxels along x and y per cell of the output."""
        return math.prod(self.strides)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The strided convolutions: one per stage after the first, and the last, which merges layers only."""
        begins = (Kernel((3, 3, 3), (s, s, s), (p, 1, 1)) for s, p in zip(self.strides, self.padding_z, strict=True))
        return (*begins, Kernel((3, 1, 1), (2, 1, 1)))

    def bev_channels(self, shape: Triple) -> int:
        """Channels of the BEV map of a grid of ``shape`` voxels (z, y, x).

        Raises:
            ValueError: the grid is too small.
        """
        for kernel in self.kernels:
            shape = kernel.output_shape(shape)
        return self.outputs * shape[0]


class SparseResNet(nn.Module):
    """SECOND's sparse backbone, residual or plain: active voxels -> BEV map.

    Source: VoxelResBackBone8x_c64 and VoxelBackBone8x (spconv_backbone.py) and HeightCompression
    (pcdet/models/backbones_2d/map_to_bev/height_compression.py) of Cc-Hy/CMKD.
    """

    def __init__(self, config: SparseResNetConfig) -> None:
        super().__init__()
        self.config = config
        *begins, last = config.kernels
        width = config.channels[0]
        self.conv_input = SparseConvNorm(SubMConv3d(config.inputs, width))
        self.stages = [f"conv{i}" for i in range(1, len(config.channels) + 1)]
        for i, (name, channels) in enumerate(zip(self.stages, config.channels, strict=True)):
            begin = [SparseConvNorm(SparseConv3d(width, channels, begins[i - 1]))] if i else []
            self.add_module(name, nn.Sequential(*begin, *self._blocks(channels, first=i == 0)))
            width = channels
        self.conv_out = SparseConvNorm(SparseConv3d(width, config.outputs, last))

    def _blocks(self, channels: int, first: bool) -> list[nn.Module]:
        config = self.config
        if config.block == "residual":
            return [SparseBasicBlock(channels, config.block_bias) for _ in range(config.blocks)]
        return [SparseConvNorm(SubMConv3d(channels, channels)) for _ in range(config.blocks - first)]

    def maps(self, x: SparseTensor) -> list[SparseTensor]:
        """What every stage gives, and the last convolution."""
        x = self.conv_input(x)
        given = []
        for name in (*self.stages, "conv_out"):
            x = self.get_submodule(name)(x)
            given.append(x)
        return given

    def forward(self, x: SparseTensor) -> Float[Tensor, "b c y x"]:
        """The BEV map, of channels c * Z + z where Z layers are left; cells without an active voxel are 0."""
        return self.maps(x)[-1].dense().flatten(1, 2)
