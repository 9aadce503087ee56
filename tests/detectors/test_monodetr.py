"""MonoDETR beyond what was recorded: its own geometry, its groups of queries, and what distillation reads."""

from dataclasses import replace

import pytest
import torch
from test_registered import CAMERA, SIZE, cars, make_batch
from torch import Tensor

from distill3d.boxes import wrap_angle
from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import place_objects
from distill3d.data.sample import Batch, ObjectBatch, Objects
from distill3d.detectors import monodetr
from distill3d.detectors.base import Outputs
from distill3d.detectors.monodetr import HEADS, MonoDETR, MonoDETRConfig, MonoDETRTargets, tiny
from distill3d.detectors.monodle import HEADING_BINS
from distill3d.layers.image.resnet import ResNetConfig


def placed_batch(objects: Objects, canvas: tuple[int, int], zoom: float, flip: bool) -> Batch:
    """One image whose objects went through a mirror and a crop."""
    affine = ImageAffine.crop(SIZE, canvas, zoom, (0.02, 0.0), flip)
    batch = make_batch([objects], torch.Generator().manual_seed(0))
    return replace(
        batch, camera=Camera(affine.camera(CAMERA).projection[None]), affine=ImageAffine.stack([affine]),
        image=torch.zeros(1, 3, canvas[1], canvas[0], dtype=torch.float64),
        objects=ObjectBatch.pad([place_objects(objects, affine)]), depth=None,
    )  # fmt: skip


def perfect_outputs(targets: MonoDETRTargets, queries: int, groups: int = 1) -> Outputs:
    """One decoder layer whose query i of each group says what slot i's target says, the others nothing."""
    batch, slots = targets.mask_2d.shape
    heads = {name: torch.zeros(batch, 1, groups, queries, width).double() for name, width in HEADS.items()}
    heads["logits"] -= 9
    heads["boxes"] += 0.9
    image, slot = targets.mask_2d.nonzero(as_tuple=True)
    bins = targets.heading_bin[image, slot]
    heads["logits"][image, 0, :, slot, targets.label[image, slot]] = 9.0
    heads["boxes"][image, 0, :, slot] = targets.boxes[image, slot, None].double()
    heads["size_3d"][image, 0, :, slot] = targets.size_3d[image, slot, None].double()
    heads["depth"][image, 0, :, slot, 0] = targets.depth[image, slot, None].double()
    heads["heading"][image, 0, :, slot, bins] = 5.0
    heads["heading"][image, 0, :, slot, HEADING_BINS + bins] = targets.heading_residual[image, slot, None].double()
    return Outputs({}, {name: value.flatten(2, 3) for name, value in heads.items()})


@pytest.mark.parametrize("zoom", [1.0, 1.05])
@pytest.mark.parametrize("flip", [False, True])
def test_decode_undoes_encode(zoom: float, flip: bool) -> None:
    """Also through a mirror and a crop: boxes come back in the frame of the image file."""
    objects = cars(6, torch.Generator().manual_seed(3))
    batch = placed_batch(objects, (320, 96), zoom, flip)
    model = MonoDETR(tiny()).double()
    targets = model.encode(batch)
    shown = targets.mask_2d[0]
    assert shown.sum() >= 3
    (found,) = model.decode(perfect_outputs(targets, model.config.queries), batch)
    truth = objects.boxes[shown]
    assert len(found) == len(truth) and truth.box2d is not None and found.box2d is not None
    nearest = torch.cdist(found.centre, truth.centre).argmin(1)
    torch.testing.assert_close(found.centre, truth.centre[nearest], rtol=0, atol=1e-2)
    torch.testing.assert_close(found.size, truth.size[nearest], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.box2d, truth.box2d[nearest], rtol=0, atol=1e-3)
    assert wrap_angle(found.yaw - truth.yaw[nearest]).abs().max() < 1e-5


@pytest.mark.parametrize("canvas", [(320, 96), (320, 160)])
@pytest.mark.parametrize(("zoom", "flip"), [(1.0, False), (1.05, True)])
def test_depth_from_height_is_the_target_on_any_canvas(canvas: tuple[int, int], zoom: float, flip: bool) -> None:
    """The released form holds only where canvas and image have the same proportions."""
    objects = cars(6, torch.Generator().manual_seed(3))
    batch = placed_batch(objects, canvas, zoom, flip)

    def geometric(config: MonoDETRConfig) -> tuple[Tensor, Tensor]:
        model = MonoDETR(config).double()
        targets = model.encode(batch)
        raw = torch.zeros(*targets.depth.shape, 2).double()
        raw[..., 0] = 40.0  # regresses 0 m
        flat = torch.zeros(1, 2, 2).double()
        focal, height = model._depth_geometry(batch, raw)
        depth = monodetr.object_depth(raw, targets.size_3d[..., 0], targets.boxes, flat, focal, height)
        return 3 * depth[..., 0][targets.mask_2d], targets.depth[targets.mask_2d]

    depth, target = geometric(tiny())
    assert len(target) >= 3
    torch.testing.assert_close(depth, target, rtol=1e-4, atol=1e-3)
    depth, target = geometric(tiny(decode_scale="per_axis"))
    share = canvas[1] * SIZE[0] / canvas[0] / SIZE[1]
    torch.testing.assert_close(depth, target * share, rtol=1e-4, atol=1e-3)


def test_perfect_outputs_cost_nothing_but_classes() -> None:
    """With a full group for every object, in each group; the depth's likelihood is 0 with scale 1."""
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(5, generator), cars(0, generator)], generator)
    model = MonoDETR(tiny()).double()
    batch = replace(batch, image=batch.image.double())
    targets = model.encode(batch)
    assert targets.mask_2d.sum() >= 2
    outputs = perfect_outputs(targets, model.config.queries, model.config.groups)
    matched = monodetr.match(outputs.predictions, targets, model.config.queries)[:, 0]
    slot = torch.arange(targets.mask_2d.shape[1])
    first = torch.arange(model.config.groups)[:, None] * model.config.queries
    expected = torch.where(targets.mask_2d[:, None], first + slot, -1)
    assert torch.equal(matched, expected)
    heads = {head: p[:, 0] for head, p in outputs.predictions.items()}
    losses = monodetr.set_losses(heads, targets, matched)
    for name in ("centre", "sides", "giou", "size_3d", "depth"):
        assert float(losses[name]) == pytest.approx(0, abs=1e-9), name
    assert float(losses["class"]) < 1e-3 and float(losses["heading"]) < 0.1


@pytest.mark.parametrize("groups", [1, 5])
def test_depth_log_scale_is_that_of_matched_queries(groups: int) -> None:
    """The mean over groups; 0 in slots that are not trained."""
    generator = torch.Generator().manual_seed(0)
    objects = [cars(6, generator), cars(0, generator)]
    batch = make_batch(objects, generator)
    model = MonoDETR(tiny(queries=8)).double()
    targets = model.encode(replace(batch, image=batch.image.double()))
    assert 2 <= targets.mask_2d.sum() < targets.mask_2d.numel()
    outputs = perfect_outputs(targets, 8, groups)
    scale = torch.randn(2, 1, groups, 8, generator=generator).double()
    outputs.predictions["depth"][..., 1] = scale.flatten(2)
    expected = torch.where(targets.mask_2d, scale[:, 0].mean(1)[:, : targets.mask_2d.shape[1]], 0)
    torch.testing.assert_close(model.depth_log_scale(outputs, batch, targets), expected)


def test_objects_without_a_query_have_log_scale_0() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(6, generator), cars(0, generator)], generator)
    model = MonoDETR(tiny(queries=1)).double()
    targets = model.encode(replace(batch, image=batch.image.double()))
    assert targets.mask_2d[0].sum() >= 2
    outputs = perfect_outputs(replace(targets, mask_2d=torch.zeros_like(targets.mask_2d)), queries=1)
    outputs.predictions["depth"][..., 1] = 0.7
    read = model.depth_log_scale(outputs, batch, targets)
    assert (read == 0.7).sum(1).tolist() == [1, 0] and (read != 0).sum(1).tolist() == [1, 0]


def quiet(config: MonoDETRConfig) -> MonoDETR:
    """A network without dropout whose heads say something."""
    torch.manual_seed(0)
    model = MonoDETR(replace(config, dropout=0.0)).double()
    for heads in model.heads:
        torch.nn.init.normal_(heads["boxes"][-1].weight, std=0.1)
    model.backbone.eval()
    return model


def double_batch(counts: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(n, generator) for n in counts], generator)
    return replace(batch, image=batch.image.double())


def test_groups_of_queries_do_not_see_each_other() -> None:
    """What the first group says in training is what it says alone, at test time."""
    batch, model = double_batch([2]), quiet(tiny())
    with torch.no_grad():
        model.train()
        model.backbone.eval()
        trained = model(batch).predictions
        tested = model.eval()(batch).predictions
    for head in HEADS:
        assert trained[head].shape[2] == model.config.groups * model.config.queries
        torch.testing.assert_close(trained[head][:, :, : model.config.queries], tested[head])


def test_images_of_a_batch_do_not_see_each_other() -> None:
    """And every prediction has four dimensions, as teachers' answers are put together again."""
    from distill3d.train.teachers import single

    batch, model = double_batch([2, 1]), quiet(tiny()).eval()
    with torch.no_grad():
        together = model(batch).predictions
        for i in range(2):
            for name, alone in model(single(batch, i)).predictions.items():
                torch.testing.assert_close(together[name][i : i + 1], alone)
                assert alone.dim() == 4


@pytest.mark.parametrize(("rule", "columns"), [("clamp", [0, 1]), ("python", [])])
def test_a_box_across_the_left_border_keeps_its_visible_part(rule: str, columns: list[int]) -> None:
    corners = torch.tensor([[[-2.5, 0.0, 1.2, 1.0]]])
    painted = monodetr.paint_depth(corners, torch.tensor([[7.0]]), torch.tensor([[True]]), (2, 6), rule)
    assert painted[0, 0].nonzero()[:, 0].tolist() == columns and not painted[0, 1].any()


def test_predictions_under_autocast_are_not_rounded_to_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    batch, model = make_batch([cars(3, generator)], generator), quiet(tiny()).float().eval()
    with torch.no_grad():
        plain = model(batch).predictions
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch).predictions
    for head in HEADS:
        on_grid = rounded[head] == rounded[head].bfloat16().float()
        assert on_grid.float().mean() < 0.1, head
    for head in ("boxes", "size_3d"):
        assert (rounded[head] - plain[head]).abs().max() < 0.05


#: Parameters of the released network (37,675,220), of which these serve no forward pass: a label embedding, the
#: decoder's query scale and reference-point perceptrons, and the bins' values, stored as a parameter.
RELEASED, UNUSED = 37_675_220, 4 * 255 + 2 * (256 * 256 + 256) + (256 * 256 + 256) + (256 * 2 + 2) + 81
#: The released batch norms hold buffers, ours frozen parameters.
NORMS = 53_120


def test_parameter_count_of_the_released_network() -> None:
    """Its value projection is stored but unused: the ``projected`` variant has it."""
    model = MonoDETR(MonoDETRConfig(trunk=ResNetConfig(frozen=True), self_attention_value="projected"))
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == RELEASED - UNUSED + NORMS
    assert sum(p.numel() for p in parameters if p.requires_grad) == 37_452_739 - (UNUSED - 81)


def test_a_frozen_trunk_keeps_its_statistics() -> None:
    batch = make_batch([cars(1, torch.Generator().manual_seed(0))], torch.Generator().manual_seed(0))
    model = MonoDETR(tiny(trunk=replace(monodetr.TINY_TRUNK, frozen=True))).train()
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    sum(model.loss(model(batch), batch).values()).backward()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.named_buffers())
    frozen = {name.split(".")[1] for name, p in model.backbone.named_parameters() if p.grad is None}
    assert {"conv1", "bn1", "layer1"} <= frozen
    assert model.backbone.body.layer2[0].conv1.weight.grad is not None
