"""Distances, relations, adapters and precision: what they are where the field's own code leaves them undefined."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill3d.distill.adapters import AdaptedTaps, ConvAdapter, ReviewFusion
from distill3d.distill.distances import correlation, kl_divergence, weighted_mean
from distill3d.distill.precision import full_precision
from distill3d.distill.relations import affinity, affinity_loss, resized

PAPER_CHANNELS = {"backbone_4": 64, "backbone_8": 128, "backbone_16": 256, "backbone_32": 512}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parameters_at_paper_size() -> None:
    """Counts of the released models (MonoDistill and MonoSKD)."""
    with torch.device("meta"):
        assert parameters(ReviewFusion(tuple(PAPER_CHANNELS.values()), 512)) == 4_927_366
        monodistill = AdaptedTaps(
            ("backbone_8", "backbone_16", "backbone_32"), PAPER_CHANNELS, PAPER_CHANNELS, tuple(PAPER_CHANNELS), 512
        )
        assert parameters(monodistill.adapters) == 3_442_432
        assert parameters(monodistill) == 4_927_366 + 3_442_432
        assert parameters(ConvAdapter(64)) == 41_088


def test_one_level_of_fusion_does_not_look_at_coarser_ones() -> None:
    fusion = ReviewFusion((4, 6), 5).double().eval()
    maps = [random(1, 4, 8, 12).requires_grad_(), random(1, 6, 4, 6).requires_grad_()]
    fine, coarse = fusion(maps)
    assert [fine.shape, coarse.shape] == [m.shape for m in maps]
    assert torch.autograd.grad(coarse.sum(), maps[0], allow_unused=True, retain_graph=True) == (None,)
    assert float(torch.autograd.grad(fine.sum(), maps[1])[0].abs().sum()) > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_take_any_precision(dtype: torch.dtype, autocast: bool) -> None:
    modules = [ConvAdapter(4), ReviewFusion((4, 4), 8)]
    x = random(2, 4, 6, 6).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = [modules[0](x), *modules[1]([x, x[..., ::2, ::2]])]
    torch.stack([o.float().sum() for o in outputs]).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    ("student", "message"),
    [({"a": 3}, "tap 'a' has 3 channels in the student and 4"), ({"b": 4}, "the student has no tap 'a'; it offers b")],
)
def test_channels_must_agree(student: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptedTaps(("a",), student, {"a": 4})


def test_a_tap_that_the_teacher_lacks_is_told_with_those_that_it_has() -> None:
    with pytest.raises(ValueError, match="the teacher has no tap 'a'; it offers c, d"):
        AdaptedTaps(("a",), {"a": 4}, {"c": 4, "d": 4})


def test_fusion_must_hold_the_compared_taps() -> None:
    with pytest.raises(ValueError, match="lack some"):
        AdaptedTaps(("a", "b"), {"a": 4, "b": 4}, {"a": 4, "b": 4}, ("a",), 8)


def test_weighted_mean() -> None:
    values = random(2, 3, 4, 5)
    mask = random(2, 1, 4, 5, seed=1) > 0
    expected = values[mask.expand_as(values)].mean()
    torch.testing.assert_close(weighted_mean(values, mask), expected)
    soft = random(2, 1, 4, 5, seed=2).abs()
    torch.testing.assert_close(weighted_mean(values, soft), (values * soft).sum() / (3 * soft.sum()))


def test_weighted_mean_of_nothing() -> None:
    values = random(2, 3).requires_grad_()
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    mean = weighted_mean(values, nothing)
    mean.backward()
    assert float(mean.detach()) == 0
    assert values.grad is not None
    assert float(values.grad.abs().max()) == 0
    assert bool(weighted_mean(values, nothing, "nan").isnan())
    broken = torch.full((2, 3), torch.nan)
    assert float(weighted_mean(broken, nothing)) == 0


def test_kl_divergence_points_from_teacher_to_student() -> None:
    s, t = random(5, 12), random(5, 12, seed=1)
    q_s, q_t = s.softmax(-1), t.softmax(-1)
    torch.testing.assert_close(kl_divergence(s, t), q_t * (q_t.log() - q_s.log()))
    assert float(kl_divergence(t, t).abs().max()) < 1e-15
    far = kl_divergence(torch.tensor([[1000.0, -1000.0]]), torch.tensor([[-1000.0, 1000.0]]))
    assert bool(far.isfinite().all())


@pytest.mark.parametrize("group", [None, 1, 2, 3, 7])
def test_correlation_equals_numpy(group: int | None) -> None:
    a, b = random(4, 30), random(4, 30, seed=1)
    size = group or 4
    expected = np.mean(
        [np.corrcoef(a[i : i + size].flatten(), b[i : i + size].flatten())[0, 1] for i in range(0, 4, size)]
    )
    assert float(correlation(a, b, group)) == pytest.approx(expected, rel=1e-12)
    assert float(correlation(a, 3 * a + 2, group)) == pytest.approx(1)
    assert float(correlation(a, -a, group)) == pytest.approx(-1)


def test_correlation_of_constant_maps() -> None:
    constant, other = torch.full((2, 9), 0.1, dtype=torch.float64).requires_grad_(), random(2, 9).requires_grad_()
    rho = correlation(constant, other)
    rho.backward()
    assert float(rho.detach()) == 0
    for leaf in (constant, other):
        assert leaf.grad is not None
        assert float(leaf.grad.abs().max()) == 0
    zero = torch.zeros(2, 9, dtype=torch.float64)
    assert bool(correlation(zero, other, eps=0.0).isnan())


def test_affinity_norms() -> None:
    maps = random(2, 5, 3, 4)
    raw = affinity(maps)
    torch.testing.assert_close(raw[1, 2, 7], maps[1].flatten(1)[:, 2] @ maps[1].flatten(1)[:, 7])
    cosine = affinity(maps, "cosine")
    torch.testing.assert_close(cosine, affinity(maps * 7, "cosine"))
    torch.testing.assert_close(cosine.diagonal(dim1=1, dim2=2), torch.ones(2, 12, dtype=torch.float64))
    assert bool(affinity(torch.zeros(1, 2, 2, 2), "cosine").isfinite().all())


def test_resized_keeps_equal_sizes_and_averages_halves() -> None:
    maps = random(1, 2, 4, 6)
    assert resized(maps, (4, 6)) is maps
    torch.testing.assert_close(resized(maps, (2, 3)), nn.functional.avg_pool2d(maps, 2))


def test_full_precision() -> None:
    seen = []

    @full_precision
    def product(first: list[Tensor], second: dict[str, Tensor]) -> Tensor:
        seen.extend([first[0].dtype, second["x"].dtype])
        return first[0] @ second["x"]

    x = random(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert product([x.bfloat16()], {"x": x.float()}).dtype == torch.float32
        assert product([x], {"x": x}).dtype == torch.float64
    assert seen == [torch.float32, torch.float32, torch.float64, torch.float64]
    with pytest.raises(TypeError, match="needs a tensor"):
        product([], {})


def test_affinity_survives_autocast() -> None:
    pairs = [(random(2, 6, 4, 8).float(), random(2, 6, 4, 8, seed=1).float())]
    plain = affinity_loss(pairs, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(affinity_loss(pairs, 2.0), plain)
