"""CaDDN as a whole: sizes, taps, what is trained by what, and what is left out at test time."""

from dataclasses import replace

import pytest
import torch
from made_up import CAMERA, CANVAS, LIDAR_TO_CAMERA, SIZE, cars, make_batch
from torch import Tensor

from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import mirror_pose
from distill3d.data.sample import Batch, ObjectBatch
from distill3d.detectors.base import BevGeometry, Outputs
from distill3d.detectors.caddn import (
    CaDDN,
    CaDDNConfig,
    DeepLabTrunk,
    DepthTrunkConfig,
    depth_bins,
    depth_focal_loss,
    input_image,
    inside_image,
    tiny,
)
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import BevBackboneConfig
from distill3d.layers.heads.anchor_head import AnchorHeadConfig
from distill3d.layers.heads.anchors import KITTI_ANCHORS
from distill3d.settings import from_plain, to_plain

MONOTAKD = {"spatial_alignment": True, "fusion": "ffm", "assistant": "shared"}
#: Its anchors stand on a map of half the taps' resolution.
HALVING = BevBackboneConfig((1, 1), (8, 8), (2, 1), (8, 8), (1, 1))
CONFIGS = {
    "plain": tiny(),
    "assistant": tiny(input="rgb+gt_depth"),
    "without adaptation": tiny(domain_adaptation=0),
    "halved": tiny(
        head=AnchorHeadConfig(classes=KITTI_ANCHORS[:1], backbone=HALVING), domain_adaptation=0, sampling="corners"
    ),
    "intended": CaDDNConfig.styled("intended", **vars(tiny(sampling="intended"))),
    "aligned": tiny(spatial_alignment=True, fusion="ffm"),
    "monotakd": tiny(**MONOTAKD),
    "skip": tiny(spatial_alignment=True, fusion="skip"),
    "commented": tiny(**MONOTAKD | {"fusion": "released_as_commented", "fusion_norm": "shared"}),
}


def build(config: CaDDNConfig, seed: int = 0) -> CaDDN:
    torch.manual_seed(seed)
    return CaDDN(config)


def scene(*counts: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return make_batch([cars(n, generator) for n in counts], generator)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


#: Beside a scene for every configuration; the others of these for each are for thorough tests.
ALSO = [("plain", (0,), False), ("plain", (60, 2), False), ("plain", (1,), True), ("monotakd", (1,), True)]


@pytest.mark.parametrize(
    ("name", "counts", "bf16"),
    [
        *((name, (0, 3), False) for name in CONFIGS), *ALSO,
        *(pytest.param(name, *more, marks=pytest.mark.thorough) for name in CONFIGS
          for more in (((0,), False), ((1,), True), ((60, 2), True)) if (name, *more) not in ALSO),
    ],
)  # fmt: skip
def test_losses_are_finite_and_trainable(name: str, counts: tuple[int, ...], bf16: bool) -> None:
    config, batch = CONFIGS[name], scene(*counts)
    model = build(config).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        targets = model.encode(batch)
        outputs = model.forward_at(batch, targets)
    assert {p.dtype for p in outputs.predictions.values()} == {torch.float32}
    losses = model.loss(outputs, batch, targets)
    assert set(losses) == {"cls", "loc", "dir"} | ({"depth"} if config.input == "rgb" else set())
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values()), losses
    torch.stack([*losses.values()]).sum().backward()
    # maps at which distillation terms alone look: the shared assistant's, and the adapted one where P is fused before
    idle = ["collapse.block_target."] if config.assistant == "shared" else []
    idle += ["domain_adaptation."] if config.fusion == "released_as_commented" else []
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {n for n, _ in model.named_parameters() if n.startswith(tuple(idle))}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert {t: f.tensor.shape[1] for t, f in outputs.features.items()} == model.tap_channels
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = model.decode(model(batch), batch)
    assert len(found) == len(counts)


def test_taps_lie_on_the_ground() -> None:
    config, batch = CONFIGS["monotakd"], scene(2, 1)
    features = build(config)(batch).features
    x, y, _ = config.voxels.shape
    assert set(features) == {"bev_visual", "bev", "bev_spatial", "bev_assistant"}
    for found in features.values():
        assert found.geometry == BevGeometry((2.0, -30.08, 46.8, 30.08), 0.64, "lidar", ("y", "x"))
        assert found.tensor.shape == (2, config.bev_channels, y, x)


#: Published sizes: 45.0 million of CMKD's student, and what MonoTAKD adds with one alignment module and its collapse.
SECOND_COLLAPSE = 64 * 10 * 128 + 2 * 128
PAPER_SIZES = {
    "cmkd": ({}, 0), "aligned": ({"spatial_alignment": True}, 1_004_928 + SECOND_COLLAPSE),
    "fused": ({"spatial_alignment": True, "fusion": "ffm", "fusion_norm": "shared"},
              1_004_928 + SECOND_COLLAPSE + 476_416),
    "without adaptation": ({"domain_adaptation": 0}, -726_016),
}  # fmt: skip


@pytest.fixture(scope="module")
def paper_size() -> int:
    with torch.device("meta"):
        return parameters(CaDDN(CaDDNConfig()))


def test_paper_size(paper_size: int) -> None:
    assert 44.9e6 < paper_size < 45.1e6


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_paper_size_of_parts(name: str, paper_size: int) -> None:
    fields, more = PAPER_SIZES[name]
    with torch.device("meta"):
        assert parameters(CaDDN(CaDDNConfig(**fields))) == paper_size + more


def test_tiny_is_small() -> None:
    assert parameters(build(tiny())) < 2e6
    assert parameters(build(tiny(**MONOTAKD))) < 2e6


@pytest.mark.parametrize(("stride", "cells"), [(8, (7, 10)), (4, (13, 19))])
def test_paper_trunk_on_an_odd_image(stride: int, cells: tuple[int, int]) -> None:
    """One image, whose sides the stride does not divide, in training: pooled norms see one value per channel."""
    batch, affine = scene(1), ImageAffine.corner((75, 51), (75, 51))
    batch = replace(
        batch, image=batch.image[..., :51, :75], depth=batch.depth[..., :51, :75], affine=ImageAffine.stack([affine])
    )
    config = tiny(trunk=DepthTrunkConfig(stride=stride))
    model = build(config).train()
    losses = model.loss(model(batch), batch)
    losses["depth"].backward()
    assert model.trunk.classifier[-1].weight.grad.abs().sum() > 0
    predicted = model(batch).predictions["depth"]
    assert predicted.shape == (1, config.bins.count + 1, *cells)


@pytest.mark.parametrize("stride", [4, 8])
def test_a_trunk_without_depth_ends_at_the_lifted_stage(stride: int) -> None:
    """Its map is that of the whole trunk, which reads depth behind it."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, 33, 50)
    whole = DeepLabTrunk(DepthTrunkConfig(stride=stride), 5).eval()
    alone = DeepLabTrunk(DepthTrunkConfig(stride=stride), None).eval()
    alone.load_state_dict({k: v for k, v in whole.state_dict().items() if k in alone.state_dict()})
    assert set(alone.backbone) < set(whole.backbone)
    with torch.no_grad():
        lifted, logits = whole(image)
        assert torch.equal(alone(image)[0], lifted) and lifted.shape[1] == alone.channels
    assert logits.shape[-2:] == lifted.shape[-2:] == (-(-33 // stride), -(-50 // stride))


@pytest.mark.parametrize("name", ["monotakd", "commented"])
def test_assistant_is_for_training_only(name: str) -> None:
    """Without its parameters, and without depth, the network says the same; F_A is offered in training with depth."""
    batch, model = scene(2, 1), build(CONFIGS[name])
    assert "bev_assistant" in model.train()(batch).features
    assert "bev_assistant" not in model(replace(batch, depth=None)).features
    model.eval()
    with torch.no_grad():
        full = model(batch)
        bare = build(replace(CONFIGS[name], assistant="none"), seed=1).eval()
        state = {k: v for k, v in model.state_dict().items() if ".block_target." not in k}
        bare.load_state_dict(state)
        alone = bare(replace(batch, depth=None))
    assert "bev_assistant" not in full.features
    assert_same(full, alone)


def assert_same(a: Outputs, b: Outputs) -> None:
    assert a.features.keys() == b.features.keys() and a.predictions.keys() == b.predictions.keys()
    assert all(torch.equal(a.features[k].tensor, b.features[k].tensor) for k in a.features)
    assert all(torch.equal(a.predictions[k], b.predictions[k]) for k in a.predictions)


def test_fusion_decides_what_the_head_sees() -> None:
    batch = scene(2)
    model = build(tiny(spatial_alignment=True, fusion="ffm")).eval()
    with torch.no_grad():
        maps = {k: f.tensor for k, f in model(batch).features.items()}
        said = {}
        for fusion, base in (("ffm", "bev"), ("released_as_commented", "bev_visual")):
            other = build(replace(model.config, fusion=fusion)).eval()
            other.load_state_dict(model.state_dict())
            said[fusion] = other(batch).predictions["cls"]
            expected = model.head(model.fusion(maps[base] + maps["bev_spatial"]))["cls"]
            torch.testing.assert_close(said[fusion], expected)
    assert not torch.equal(*said.values())


def test_true_depth_replaces_the_prediction() -> None:
    """With true depth, features land at that depth and nowhere else; an image without depth lifts nothing."""
    batch, model = scene(1, 1), build(CONFIGS["assistant"]).eval()
    batch = replace(batch, depth=torch.stack((torch.full_like(batch.depth[0], 20.0), torch.zeros_like(batch.depth[1]))))
    blank = replace(batch, depth=torch.zeros_like(batch.depth))
    with torch.no_grad():
        change = (model(batch).features["bev_visual"].tensor - model(blank).features["bev_visual"].tensor).abs().sum(1)
    assert not change[1].any()
    columns = change[0].sum(0).nonzero()[:, 0]
    geometry = model.config.geometry
    metres = geometry.extent[0] + (columns + 0.5) * geometry.cell + float(LIDAR_TO_CAMERA[2, 3])
    # 40 bins: those around 20 m are 1.4 m deep, and interpolation reaches one bin further
    assert len(columns) and metres.min() > 20 - 3 and metres.max() < 20 + 3


def test_depth_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 2, 4, generator=generator, requires_grad=True)
    target = torch.randint(0, 5, (3, 2, 4), generator=generator)
    known = torch.tensor([True, False, True])
    total = []
    for image in (0, 2):
        for row in range(2):
            for column in range(4):
                p = logits[image, :, row, column].softmax(0)[target[image, row, column]]
                total.append(-0.25 * (1 - p) ** 2 * p.log())
    loss = depth_focal_loss(logits, target, known)
    torch.testing.assert_close(loss, torch.stack(total).mean())
    nothing = depth_focal_loss(logits, target, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing == 0 and logits.grad is not None and not logits.grad.any()


def test_terms_follow_settings_and_batch() -> None:
    batch = scene(2, 2)
    cases = {
        ("cls", "loc", "dir", "depth"): (tiny(), batch),
        ("cls", "loc", "dir"): (tiny(), replace(batch, depth=None)),
        ("depth",): (tiny(detection_weight=0.0), batch),
        (): (tiny(detection_weight=0.0, depth_weight=0.0), batch),
    }
    for names, (config, seen) in cases.items():
        model = build(config)
        assert tuple(model.loss(model(seen), seen)) == names
    assert CaDDN.also_trained_on(tiny()) == {"depth"} == CaDDN.also_trained_on(tiny(depth_weight=0.0, **MONOTAKD))
    assert CaDDN.also_trained_on(tiny(depth_weight=0.0)) == set()
    assert CaDDN.also_trained_on(tiny(input="rgb+gt_depth")) == set()


def test_weights_scale_their_terms() -> None:
    batch, model = scene(2), build(tiny())
    outputs = model(batch)
    plain = model.loss(outputs, batch)
    model.config = tiny(detection_weight=3.0, depth_weight=1.0)
    for name, value in model.loss(outputs, batch).items():
        torch.testing.assert_close(value, plain[name] * (2 if name == "depth" else 3))


def test_unlabelled_images_add_no_detection_loss() -> None:
    """Of the head no gradient reaches an image whose labels are unknown, and its rows do not matter."""
    batch, model = scene(2, 3), build(tiny()).eval()
    outputs = model(batch)
    predictions = {k: v.detach().requires_grad_() for k, v in outputs.predictions.items()}
    seen = replace(batch, labelled=torch.tensor([True, False]))
    losses = model.loss(Outputs({}, predictions), seen)
    torch.stack([losses[k] for k in ("cls", "loc", "dir")]).sum().backward()
    for name in ("cls", "box", "dir"):
        gradient = predictions[name].grad
        assert gradient[0].any() and not gradient[1].any()
    none = model.loss(outputs, replace(batch, objects=None))
    assert all(none[k] == 0 for k in ("cls", "loc", "dir"))


def test_canvas_beyond_the_image_is_blank() -> None:
    batch = scene(0)
    affine = ImageAffine.stack([ImageAffine.corner((300, 90), CANVAS)])
    batch = replace(batch, affine=affine, image=torch.ones_like(batch.image))
    image = input_image(batch)
    expected = torch.zeros(CANVAS[1], CANVAS[0], dtype=torch.bool)
    expected[:90, :300] = True
    assert torch.equal((image != 0).all(1)[0], expected)
    assert not inside_image(ImageAffine.stack([ImageAffine.crop(SIZE, CANVAS, 1.5)]), CANVAS[1], CANVAS[0]).all()


@pytest.mark.parametrize("count", [0, 4])
def test_a_mirrored_scene_gives_mirrored_maps(count: int) -> None:
    """With sampling as intended: the volume of the mirrored image lies mirrored on the ground."""
    generator = torch.Generator().manual_seed(0)
    objects = cars(count, generator)
    batch = make_batch([objects], generator)
    affine = ImageAffine.crop(SIZE, CANVAS, flip=True)
    mirrored = replace(
        batch, image=batch.image.flip(-1), depth=batch.depth.flip(-1), affine=ImageAffine.stack([affine]),
        camera=Camera(affine.camera(CAMERA).projection[None]), lidar_to_camera=mirror_pose(LIDAR_TO_CAMERA)[None],
        objects=ObjectBatch.pad([objects]),
    )  # fmt: skip
    model = build(tiny(sampling="intended", input="rgb+gt_depth")).eval()
    step = model.config.trunk.stride
    seen = (slice(None), slice(None), slice(None, None, step), slice(None, None, step))
    model.trunk.forward = lambda image: (image[:, :1].expand(-1, model.trunk.channels, -1, -1)[seen], None)
    flat = replace(batch, image=torch.ones_like(batch.image)), replace(mirrored, image=torch.ones_like(batch.image))
    with torch.no_grad():
        plain, other = (model(b).features["bev_visual"].tensor for b in flat)
    assert plain.std() > 0
    torch.testing.assert_close(other, plain.flip(2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"fusion": "ffm"}, "spatial_alignment"), ({"assistant": "shared"}, "spatial_alignment")],
    ids=["fusion", "assistant"],
)  # fmt: skip
def test_settings_that_do_not_go_together(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaDDN(tiny(**fields))


def test_batches_that_lack_something() -> None:
    batch = scene(1)
    with pytest.raises(UserError, match="lidar_to_camera"):
        build(tiny())(replace(batch, lidar_to_camera=None))
    with pytest.raises(ValueError, match="needs depth"):
        build(CONFIGS["assistant"])(replace(batch, depth=None))


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_survive_as_plain_data(name: str) -> None:
    assert from_plain(CaDDNConfig, to_plain(CONFIGS[name]), "card") == CONFIGS[name]


def test_depth_targets_cover_the_lifted_map() -> None:
    batch, model = scene(1), build(tiny())
    targets = model.encode(batch)
    predicted = model(batch).predictions["depth"]
    assert targets.depth_bins.shape == predicted.shape[:1] + predicted.shape[2:]
    assert targets.depth_bins.max() <= model.config.bins.count
    far = depth_bins(torch.full((1, 1, 8, 8), 80.0), model.config.bins)
    assert torch.equal(far, torch.tensor([[[model.config.bins.count]]]))


def test_gradients_of_the_lift_reach_depth_and_features() -> None:
    batch, model = scene(2), build(tiny())
    outputs = model(batch)
    grown: Tensor = outputs.features["bev"].tensor.square().sum()
    grown.backward()
    for layer in (model.trunk.classifier[-1], model.channel_reduce.conv):
        assert layer.weight.grad.abs().sum() > 0
