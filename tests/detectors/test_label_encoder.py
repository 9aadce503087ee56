"""The label encoder as a whole: sizes, what is frozen, what it may look at, and that it can be trained."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.data.surround import SurroundBatch, SurroundObjectBatch, SurroundObjects
from distill3d.detectors import centerpoint
from distill3d.detectors.base import BevGeometry
from distill3d.detectors.label_encoder import LabelEncoder, LabelEncoderConfig, inverse_of, tiny
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import SECONDFPNConfig
from distill3d.layers.heads.centre_head import tiny_head

#: Released network without neck and head.
PAPER_SIZE = 8_626_304
#: A map of 16 x 16 cells, so that steps are fast.
SMALL = {
    "hidden": 32, "channels": (16, 24), "neck": SECONDFPNConfig(channels=(16, 16)),
    "head": tiny_head(extent=(-6.4, -6.4, 6.4, 6.4), shared_channels=16),
}  # fmt: skip


def small(**fields) -> LabelEncoderConfig:
    return tiny(**{**SMALL, **fields})


def build(config: LabelEncoderConfig, seed: int = 0) -> LabelEncoder:
    torch.manual_seed(seed)
    return LabelEncoder(config)


def scene(*counts: int, reach: float = 6.0, seed: int = 0) -> SurroundBatch:
    """Annotated moments without images or points; objects within ``reach`` m."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for n in counts:
        values = torch.rand(n, 9, generator=generator)
        centre = (2 * values[:, :3] - 1) * torch.tensor([reach, reach, 1.0])
        boxes = Boxes3D(
            centre, 0.5 + 3 * values[:, 3:6], 6 * values[:, 6], torch.randint(0, 4, (n,), generator=generator), "ego",
            velocity=torch.where(values[:, 7:8] < 0.3, torch.nan, values[:, 7:]),
        )  # fmt: skip
        samples.append(SurroundObjects(boxes, torch.ones(n, dtype=torch.int64)))
    eye, batch = torch.eye(4, dtype=torch.float64), len(counts)
    return SurroundBatch(
        [str(i) for i in range(batch)], eye.expand(batch, 1, 6, 4, 4), eye.expand(batch, 1, 6, 4, 4),
        eye.expand(batch, 6, 4, 4), eye.expand(batch, 4, 4), eye.expand(batch, 4, 4),
        objects=SurroundObjectBatch.pad(samples),
    )  # fmt: skip


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_paper_size() -> None:
    with torch.device("meta"):
        model = LabelEncoder(LabelEncoderConfig())
        assert parameters(model.encoder) == PAPER_SIZE
        teacher = centerpoint.CenterPoint(centerpoint.CenterPointConfig())
    assert {tap: model.tap_channels[tap] for tap in ("bev_0", "bev_1")} == {"bev_0": 128, "bev_1": 256}
    assert all(model.geometries[tap] == teacher.geometries[tap] for tap in model.tap_channels)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("counts", [(0,), (1,), (0, 3), (120, 2)], ids=str)
@pytest.mark.parametrize("style", ["intended", "released"])
def test_losses_are_finite_and_train_the_encoder_alone(style, counts: tuple[int, ...], bf16: bool) -> None:
    config = LabelEncoderConfig.styled(style, **{f: getattr(small(), f) for f in (*SMALL, "classes")})
    model, batch = build(config).train(), scene(*counts)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not n.startswith("encoder.")}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        targets = model.encode(batch)
        outputs = model.forward_at(batch, targets)
    losses = model.loss(outputs, batch, targets)
    assert set(losses) == {"heat", "box"}
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values()), losses
    torch.stack([*losses.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None and torch.equal(parameter, frozen[name]), name
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    assert len(model.eval().decode(model(batch), batch)) == len(counts)


def test_taps_lie_where_the_teachers_do() -> None:
    teacher = centerpoint.CenterPoint(centerpoint.tiny())
    model = LabelEncoder(tiny())
    features = model(scene(3, 1, reach=30)).features
    for tap, found in features.items():
        assert found.geometry == teacher.geometries[tap]
        x0, y0, x1, y1 = found.geometry.extent
        cells = (round((y1 - y0) / found.geometry.cell), round((x1 - x0) / found.geometry.cell))
        assert found.tensor.shape == (2, teacher.tap_channels[tap], *cells)
        assert (found.tensor >= 0).all()
    assert isinstance(model.geometries["bev_0"], BevGeometry)


def test_neck_and_head_take_over_the_teachers_weights() -> None:
    """All of its neck and head, by name and shape, and nothing else."""
    teacher = centerpoint.CenterPoint(centerpoint.tiny()).state_dict()
    own = LabelEncoder(inverse_of(centerpoint.tiny(), hidden=8)).state_dict()
    fits = {name for name, value in teacher.items() if name in own and own[name].shape == value.shape}
    assert fits == {name for name in teacher if name.startswith(("neck.", "head."))}
    assert fits == {name for name in own if not name.startswith("encoder.")}


@pytest.mark.parametrize("frozen_norm", ["eval", "train"])
def test_frozen_norms(frozen_norm) -> None:
    model = build(small(frozen_norm=frozen_norm))
    assert model.neck.training == model.head.training == (frozen_norm == "train")
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model.train()(scene(3))
    moved = {k for k, v in model.state_dict().items() if k in before and not torch.equal(v, before[k])}
    assert any(k.startswith("encoder.") for k in moved)
    assert any(k.startswith(("neck.", "head.")) for k in moved) == (frozen_norm == "train")
    model.eval()
    assert not any(m.training for m in model.modules())


def test_each_box_encoded_once_equals_every_cell_encoded() -> None:
    model, batch = build(small()).double().eval(), scene(5, 0, 40)
    raster = model.raster(batch)
    raster = replace(raster, box_rows=raster.box_rows.double(), class_rows=raster.class_rows.double())
    dense = model.encoder.levels(model.encoder.embed(raster.box, raster.onehot))
    torch.testing.assert_close(model.encoder(raster), dense, rtol=1e-9, atol=1e-9)


def levels_of(model: LabelEncoder, batch: SurroundBatch) -> list[Tensor]:
    with torch.no_grad():
        return [f.tensor for f in model(batch).features.values()]


def test_objects_of_no_size_or_off_the_map_change_nothing() -> None:
    model, batch = build(small()).eval(), scene(4, 2)
    objects = batch.objects
    assert objects is not None
    size, centre = objects.size.clone(), objects.centre.clone()
    size[0, 1] = 0
    centre[0, 2] = 500.0
    centre[1, 0] = -500.0
    changed = replace(batch, objects=replace(objects, size=size, centre=centre))
    keep = objects.present.clone()
    keep[0, 1] = keep[0, 2] = keep[1, 0] = False
    without = replace(batch, objects=replace(objects, present=keep))
    torch.testing.assert_close(levels_of(model, changed), levels_of(model, without), rtol=0, atol=0)
    losses = model.train().loss(model(changed), changed)
    assert all(v.isfinite() for v in losses.values())


def test_samples_do_not_mix_in_eval_mode() -> None:
    model, batch = build(small()).eval(), scene(3, 7)
    alone = replace(scene(1), objects=SurroundObjectBatch(**{k: v[1:] for k, v in vars(batch.objects).items()}))
    for together, single in zip(levels_of(model, batch), levels_of(model, alone), strict=True):
        torch.testing.assert_close(together[1:], single)


def test_it_needs_annotations() -> None:
    model, blind = build(small()), replace(scene(1), objects=None)
    for call in (model, model.encode):
        with pytest.raises(UserError, match="needs annotations"):
            call(blind)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"head": tiny_head(extent=(-2.8, -2.8, 2.8, 2.8))}, "no multiples of the neck's strides"),
        ({"neck": SECONDFPNConfig(channels=(16, 16), strides=(0.5, 1))}, "no multiples of the neck's strides"),
        ({"classes": ("car",)}, "the head has the class"),
        ({"channels": (16,)}, "the neck joins 2 levels"),
    ],
)
def test_settings_that_cannot_be(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LabelEncoder(small(**fields))


def test_it_learns_to_make_the_head_answer() -> None:
    """A few steps on one scene bring the frozen head's loss down."""
    model, batch = build(small()).train(), scene(6, 4)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(25):
        loss = torch.stack([*model.loss(model(batch), batch).values()]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]
