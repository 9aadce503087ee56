"""Every registered detector: any number of objects, any batch, both precisions, and decode undoes encode."""

from dataclasses import replace

import pytest
import torch
from made_up import CAMERA, CANVAS, SIZE, cars, make_batch

from distill3d.boxes import Boxes3D, wrap_angle
from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import place_objects
from distill3d.data.sample import ObjectBatch
from distill3d.detectors import (
    DETECTORS,
    build_detector,
    caddn,
    did_m3d,
    gupnet,
    monocon,
    monodetr,
    pointpillars,
    second,
)
from distill3d.detectors.base import Outputs
from distill3d.detectors.monodle import HEADING_BINS, HEADS, STRIDE, MonoDLE, MonoDLETargets, tiny

#: The smallest settings of each detector, by modality.
ENCODINGS = ("clean", "metric", "monodistill", "monoskd", "log")
SMALL = {
    "monodle": [tiny(), *(tiny(input="depth", depth_encoding=e) for e in ENCODINGS)],
    "gupnet": [gupnet.tiny(), gupnet.tiny(input="depth")],
    "did_m3d": [did_m3d.tiny(), did_m3d.tiny(input="depth")],
    "monocon": [monocon.tiny(), monocon.tiny(input="depth")],
    "monodetr": [monodetr.tiny(), monodetr.tiny(input="depth", depth_encoding="log")],
    "second": [second.tiny()],
    "pointpillars": [pointpillars.tiny(), pointpillars.tiny(norm_slots="filled")],
    "caddn": [caddn.tiny(), caddn.tiny(input="rgb+gt_depth"), caddn.tiny(spatial_alignment=True, fusion="ffm")],
}
#: Those of surround views see other batches: the same is asked of them beside what is their own.
SURROUND = {"centerpoint", "bevdepth", "bevdet", "bevformer", "bevfusion", "label_encoder"}
#: Cars in each image of a batch, and whether they stand on the image's border.
SCENES = {
    "none": ([0], False), "one": ([1], False), "none and three": ([0, 3], False), "two hundred": ([200, 2], False),
    "border": ([4], True),
}  # fmt: skip
#: Every scene for the first settings of a detector, and for all settings the one that has most in it, in both
#: precisions; the rest is for thorough tests.
CASES = [
    pytest.param(
        name, config, scene, bf16, id=f"{name}-{config.input}-{i}-{scene}-{'bf16' if bf16 else 'fp32'}",
        marks=[] if scene == "none and three" or (i == 0 and not bf16) else pytest.mark.thorough,
    )
    for name in SMALL for i, config in enumerate(SMALL[name]) for scene in SCENES for bf16 in (False, True)
]  # fmt: skip


def test_every_registered_detector_is_met_here_or_among_surround_views() -> None:
    assert set(DETECTORS) == set(SMALL) | SURROUND


@pytest.mark.parametrize(("name", "config", "scene", "bf16"), CASES)
def test_losses_are_finite_and_trainable(name: str, config, scene: str, bf16: bool) -> None:
    counts, border = SCENES[scene]
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(n, generator, border) for n in counts], generator)
    torch.manual_seed(0)
    model = build_detector(config).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        targets = model.encode(batch)
        outputs = model.forward_at(batch, targets)
    assert {p.dtype for p in outputs.predictions.values()} == {torch.float32}  # metres and pixels need more than bf16
    losses = model.loss(outputs, batch, targets)
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values()), losses
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert {t: f.tensor.shape[1] for t, f in outputs.features.items()} == model.tap_channels
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = model.decode(model(batch), batch)
    assert len(found) == len(counts) and all(isinstance(b, Boxes3D) for b in found)


def perfect_outputs(targets: MonoDLETargets) -> Outputs:
    """Head maps that say what the targets say."""
    batch, _, height, width = targets.heatmap.shape
    heads = {name: torch.zeros(batch, channels, height * width).double() for name, channels in HEADS.items()}
    heads["heatmap"] = torch.where(targets.heatmap == 1, 9.0, -9.0).double().flatten(2)
    image, slot = targets.mask_2d.nonzero(as_tuple=True)
    cell = targets.indices[image, slot]
    depth = targets.depth[image, slot].double()
    heads["depth"][image, 0, cell] = torch.logit(1 / (depth + 1) - 1e-6)
    for name in ("offset_2d", "size_2d", "offset_3d", "size_3d"):
        heads[name][image, :, cell] = getattr(targets, name)[image, slot].double()
    bins = targets.heading_bin[image, slot]
    heads["heading"][image, bins, cell] = 5.0
    heads["heading"][image, HEADING_BINS + bins, cell] = targets.heading_residual[image, slot].double()
    return Outputs({}, {name: value.view(batch, -1, height, width) for name, value in heads.items()})


@pytest.mark.parametrize("zoom", [1.0, 0.8])
@pytest.mark.parametrize("flip", [False, True])
def test_decode_undoes_encode(zoom: float, flip: bool) -> None:
    """Also through a mirror and a crop: boxes come back in the frame of the image file."""
    generator = torch.Generator().manual_seed(3)
    objects = cars(4, generator)
    affine = ImageAffine.crop(SIZE, CANVAS, zoom, (0.02, 0.0), flip)
    batch = replace(
        make_batch([objects], generator), camera=Camera(affine.camera(CAMERA).projection[None]),
        affine=ImageAffine.stack([affine]), objects=ObjectBatch.pad([place_objects(objects, affine)]),
    )  # fmt: skip
    model = MonoDLE(tiny()).double()
    batch = replace(batch, image=batch.image.double())
    targets = model.encode(batch)
    shown = targets.mask_2d[0, : len(objects)]
    assert shown.sum() >= 2
    (found,) = model.decode(perfect_outputs(targets), batch)
    truth = objects.boxes[shown]
    assert len(found) == len(truth)
    match = torch.cdist(found.centre, truth.centre).argmin(1)
    torch.testing.assert_close(found.centre, truth.centre[match], rtol=0, atol=1e-2)
    torch.testing.assert_close(found.size, truth.size[match], rtol=0, atol=1e-6)
    assert wrap_angle(found.yaw - truth.yaw[match]).abs().max() < 2e-2
    torch.testing.assert_close(found.box2d, truth.box2d[match], rtol=0, atol=1e-2)


def test_a_map_cell_is_stride_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = build_detector(tiny())(make_batch([cars(1, generator)], generator))
    assert outputs.predictions["heatmap"].shape[-2:] == (CANVAS[1] // STRIDE, CANVAS[0] // STRIDE)
    for feature in outputs.features.values():
        assert feature.tensor.shape[-1] * feature.geometry.stride == CANVAS[0]


def test_tiny_has_about_two_point_four_million_parameters() -> None:
    assert sum(p.numel() for p in build_detector(tiny()).parameters()) == pytest.approx(2.4e6, rel=0.02)
