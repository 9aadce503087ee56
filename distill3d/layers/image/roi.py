"""Regions of interest of two-stage monocular detectors: 2D boxes read at map cells, and what lies in them on a grid.

Sources: SuperMHP/GUPNet code/lib/models/gupnet.py; SPengLiang/DID-M3D lib/models/DID.py (get_roi_feat, project2rect).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill3d.camera import Camera, ImageAffine
from distill3d.layers.image.heatmap import clamped_sigmoid, find_peaks
from distill3d.layers.readout import Readout
from distill3d.transfers import constant

#: Cells of a RoI's grid in each direction.
ROI_SIZE = 7
#: Coordinate maps that are added to the features of a RoI.
COORDINATE_CHANNELS = 2


@dataclass(frozen=True)
class RoISlots:
    """K slots per image, of which M become RoIs: labelled objects in training, peaks of the heat map in tests.

    What a network says of the RoIs is kept by slot, so that it lines up with targets and between networks.
    """

    index: Int[Tensor, "b k"]  # flat cell row * w + column
    label: Int[Tensor, "b k"]  # class, a channel of the heat map
    image: Int[Tensor, "m"]  # of each RoI, by image, then slot
    slot: Int[Tensor, "m"]
    score: Float[Tensor, "b k"] | None = None  # of the peak; None where the slots are targets

    @classmethod
    def at_targets(
        cls, index: Tensor, label: Tensor, mask: Tensor, places: tuple[Tensor, Tensor] | None = None
    ) -> RoISlots:
        """A RoI for each slot (B, K) in ``mask``; ``places``: their images and slots, where these are known."""
        image, slot = places or mask.nonzero(as_tuple=True)
        return cls(index, label, image, slot)

    @classmethod
    def at_peaks(cls, heatmap: Float[Tensor, "b c h w"], count: int) -> RoISlots:
        """A RoI for each of the ``count`` highest peaks of the heat map (raw logits)."""
        score, label, index = find_peaks(clamped_sigmoid(heatmap), count)
        images, slots = (torch.arange(n, device=index.device) for n in index.shape)
        return cls(index, label, images.repeat_interleave(len(slots)), slots.repeat(len(images)), score)

    def of_images(self, rows: list[int]) -> RoISlots:
        """The slots and RoIs of some images, in ascending order, alone."""
        place = self.image.new_full((len(self.index),), -1)
        place[rows] = torch.arange(len(rows), device=place.device)
        image = place[self.image]
        kept = image >= 0
        score = None if self.score is None else self.score[rows]
        return RoISlots(self.index[rows], self.label[rows], image[kept], self.slot[kept], score)

    def read(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "m c"]:
        """Channels of the maps at the RoIs' cells."""
        return maps.flatten(2)[self.image, :, self.index[self.image, self.slot]]

    def spread(self, values: Float[Tensor, "m *n"]) -> Float[Tensor, "b k *n"]:
        """Values of the RoIs by slot; 0 in slots without a RoI."""
        blank = values.new_zeros(*self.index.shape, *values.shape[1:])
        return blank.index_put((self.image, self.slot), values)


@dataclass(frozen=True)
class MapWindow:
    """Which part of the image file a map shows: source px = ``scale`` * cells + ``offset``, in the mirrored file where
    the image was mirrored."""

    scale: Float[Tensor, "b 2"]
    offset: Float[Tensor, "b 2"]

    @classmethod
    def of(
        cls, affine: ImageAffine, map_size: tuple[int, int], mode: Literal["inverse", "per_axis"] = "inverse"
    ) -> MapWindow:
        """The window of maps of (width, height) cells that cover the canvas.

        ``inverse`` undoes the affine, which scales both axes alike.  ``per_axis``, as released, takes the canvas's
        height to be that of the crop window: the source's height times the share of its width that is seen.
        """
        canvas, source = affine.canvas_size, affine.source_size
        cells = constant(map_size, canvas)
        shift, scale = affine.matrix[..., 2], affine.scale[..., None]
        if mode == "inverse":
            return cls(canvas / cells / scale, -shift / scale)
        window = source * (canvas[..., :1] / scale / source[..., :1])
        return cls(window / cells, (canvas / 2 - shift) / scale - window / 2)

    def to_source(self, box: Float[Tensor, "m 4"], image: Int[Tensor, "m"]) -> Float[Tensor, "m 4"]:
        """Boxes in cells of ``image`` as boxes in source px."""
        scale, offset = (value.to(box.dtype).repeat(1, 2)[image] for value in (self.scale, self.offset))
        return box * scale + offset


@dataclass(frozen=True)
class RoIs:
    """What two-stage heads look at."""

    features: Float[Tensor, "m c 7 7"]  # map features, coordinate maps, class
    box: Float[Tensor, "m 4"]  # left, top, right, bottom in cells; may be inside out early in training
    source_box: Float[Tensor, "m 4"]  # in px of the (mirrored) image file
    label: Int[Tensor, "m"]
    focal: Float[Tensor, "m"]  # px of the image file


def look_at(
    features: Float[Tensor, "b c h w"],
    offset_2d: Float[Tensor, "b 2 h w"],
    size_2d: Float[Tensor, "b 2 h w"],
    slots: RoISlots,
    window: MapWindow,
    camera: Camera,
    classes: int,
    aligned: bool = False,
) -> RoIs:
    """The RoIs of the slots, with the 2D boxes that ``offset_2d`` and ``size_2d`` (cells) predict there.

    The boxes are trained through the coordinate maps and through what heads make of ``box`` and ``source_box``;
    nothing flows back to them through the sampling of features.

    Args:
        camera: behind the (mirrored) image files, projection (B, 3, 4).
        classes: length of the class one-hot, the last of the ``c + 2 + classes`` channels.
        aligned: whether the sampling takes cell (0, 0) to be *centred* at (0, 0).
    """
    width = offset_2d.shape[-1]
    index = slots.index[slots.image, slots.slot]
    centre = torch.stack((index % width, index // width), -1) + slots.read(offset_2d)
    half = slots.read(size_2d) / 2
    box = torch.cat((centre - half, centre + half), -1)
    source_box = window.to_source(box, slots.image)
    projection = camera.projection.to(box.dtype)[slots.image]
    label = slots.label[slots.image, slots.slot]
    seen = sample_boxes(features, box, slots.image, aligned)
    kind = F.one_hot(label, classes).to(seen.dtype)[:, :, None, None].expand(-1, -1, ROI_SIZE, ROI_SIZE)
    where = coordinate_maps(source_box, Camera(projection)).to(seen.dtype)
    return RoIs(torch.cat((seen, where, kind), 1), box, source_box, label, projection[:, 0, 0])


def sample_boxes(
    maps: Float[Tensor, "b c h w"], box: Float[Tensor, "m 4"], image: Int[Tensor, "m"], aligned: bool = False
) -> Float[Tensor, "m c 7 7"]:
    """RoIAlign with as many samples as a box has cells, in float32 or better; 0 outside the maps.

    A bfloat16 cannot tell neighbouring cells of a wide map apart.
    """
    from torchvision.ops import roi_align

    with torch.autocast(maps.device.type, enabled=False):
        exact = maps.to(torch.promote_types(maps.dtype, box.dtype))
        rows = torch.cat((image[:, None].to(exact.dtype), box.detach().to(exact.dtype)), -1)
        return roi_align(exact, rows, ROI_SIZE, aligned=aligned)


def coordinate_maps(source_box: Float[Tensor, "m 4"], camera: Camera) -> Float[Tensor, "m 2 7 7"]:
    """Where the camera looks in a RoI: x, growing with the columns, and y, with the rows, of the plane 1 m ahead.

    The first and the last cell hold the box's edges.
    """
    ones = source_box.new_ones(len(source_box), 2)
    first, last = camera.back_project(source_box.unflatten(-1, (2, 2)), ones)[..., :2].unbind(1)
    steps = torch.linspace(0, 1, ROI_SIZE, dtype=first.dtype, device=first.device)
    x, y = (first[:, :, None] + (last - first)[:, :, None] * steps).unbind(1)
    return torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), 1)


def pooled_head(channels_in: int, channels: int, channels_out: int) -> nn.Sequential:
    """(M, c, 7, 7) -> (M, channels_out, 1, 1): convolution, batch norm, ReLU, mean over the grid, read-out."""
    return xavier(
        nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), Readout(channels, channels_out, 1),
        )
    )  # fmt: skip


def grid_head(channels_in: int, channels: int) -> nn.Sequential:
    """(M, c, 7, 7) -> (M, 1, 7, 7): convolution, leaky ReLU, read-out in each cell."""
    return xavier(
        nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1), nn.LeakyReLU(inplace=True), Readout(channels, 1, 1)
        )
    )


def xavier(head: nn.Sequential) -> nn.Sequential:
    """The head with Xavier-uniform convolutions without bias, in place."""
    for layer in head:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return head
