"""Synapses without a memory: dense, sparse, convolutional, lateral; signs, masks and wiring."""

import math

import pytest
import torch
from torch import nn

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.kernels import SparseWeight
from plexus.kernels._sparse import sparse_linear, sparse_reference
from plexus.nn import LIF, Sequential, parametrize_, project_, project_after_step
from plexus.nn.synapses import (
    Convolution,
    DelayedLinear,
    Dense,
    HeterogeneousDelays,
    Lateral,
    Sparse,
    dale_signs,
    distance_dependent,
    grid_distance,
    ring_distance,
    small_world,
)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mask(n_out: int = 6, n_in: int = 8, share: float = 0.3) -> torch.Tensor:
    return torch.rand(n_out, n_in, generator=source(4)) < share


SIGNS = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0])

SIGNED = {
    "dense": lambda: Dense(8, 6, signs=SIGNS, generator=source()),
    "masked": lambda: Dense(8, 6, signs=SIGNS, mask=random_mask(), generator=source()),
    "sparse": lambda: Sparse(random_mask(), signs=SIGNS, generator=source()),
    "delays": lambda: HeterogeneousDelays(8, 6, 4, signs=SIGNS, mask=random_mask(), generator=source()),
    "convolution": lambda: Convolution(8, 6, 3, signs=SIGNS, generator=source()),
}


def run(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = layer(x)
    return out[0] if isinstance(out, tuple) else out


def effective(layer: nn.Module) -> torch.Tensor:
    """The weights as they act, sources along dimension 1."""
    if isinstance(layer, Sparse):
        return layer.matrix()
    mask = getattr(layer, "mask", None)
    return layer.weight if mask is None else layer.weight * mask


class TestDale:
    @pytest.mark.parametrize("kind", list(SIGNED))
    @pytest.mark.parametrize("mechanism", ["projection", "parametrization"])
    def test_signs_outlive_learning(self, kind, mechanism):
        layer = SIGNED[kind]()
        if mechanism == "parametrization":
            parametrize_(layer)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        if mechanism == "projection":
            project_after_step(optimizer, layer)
        x = torch.rand(5, 3, 8, 4, 4) if kind == "convolution" else torch.rand(5, 3, 8)
        before = effective(layer).detach().clone()
        for step in range(6):
            optimizer.zero_grad()
            (run(layer, x) * torch.randn(run(layer, x).shape, generator=source(step))).sum().backward()
            optimizer.step()
        after = effective(layer).detach()
        signs = SIGNS.view(1, 8, *[1] * (after.dim() - 2))
        assert bool((after * signs >= 0).all())
        assert not torch.allclose(after, before)
        mask = getattr(layer, "mask", None)
        if mask is not None:
            assert not bool(after[~mask].any())

    def test_projection_prunes_to_zeros_that_can_grow_again(self):
        layer = Dense(1, 1, signs=torch.ones(1))
        with torch.no_grad():
            layer.weight.fill_(-0.4)
        project_(layer)
        assert layer.weight.item() == 0.0
        layer(torch.ones(1, 1)).sum().backward()
        assert layer.weight.grad.item() == 1.0

    def test_without_projection_signs_are_lost(self):
        layer = SIGNED["dense"]()
        optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
        layer(torch.rand(5, 3, 8)).sum().backward()
        optimizer.step()
        assert bool((layer.weight * SIGNS < 0).any())

    def test_one_call_projects_a_whole_model(self):
        model = Sequential(SIGNED["dense"](), LIF(6), DelayedLinear(6, 2, 3))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=source()) * 5)
        project_(model)
        assert bool((model[0].weight * SIGNS >= 0).all())
        assert bool(((model[2].delay >= 0) & (model[2].delay <= 3)).all())

    def test_shares(self):
        assert dale_signs(10, 0.8).tolist() == [1.0] * 8 + [-1.0] * 2
        assert dale_signs(3, 1.0).tolist() == [1.0] * 3
        with pytest.raises(RangeError):
            dale_signs(3, 1.2)
        with pytest.raises(RangeError):
            Dense(2, 2, signs=torch.tensor([1.0, 0.5]))
        with pytest.raises(ShapeError):
            Dense(2, 2, signs=torch.ones(3))


class TestDenseSparseConvolution:
    def test_dense_is_linear(self):
        layer, x = Dense(8, 6, bias=True), torch.rand(5, 3, 8)
        torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
        assert [name for name, _ in Dense(8, 6).named_parameters()] == ["weight"]

    def test_masked_synapses_neither_act_nor_learn(self):
        layer = Dense(8, 6, mask=random_mask())
        with torch.no_grad():
            layer.weight.add_(1.0)
        layer(torch.rand(5, 3, 8)).sum().backward()
        assert not bool(layer.weight.grad[~layer.mask].any())
        project_(layer)
        assert not bool(layer.weight[~layer.mask].any())

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_sparse_equals_its_matrix(self, share):
        layer = Sparse(random_mask(share=share), generator=source()).double()
        x = ((torch.rand(5, 3, 8) < 0.4) * torch.rand(5, 3, 8)).double().requires_grad_()
        out, expected = layer(x), x @ layer.matrix().T
        torch.testing.assert_close(out, expected)
        g = torch.randn_like(out)
        wanted = (x, layer.weight)
        found = torch.autograd.grad(out, wanted, g)
        for a, b in zip(found, torch.autograd.grad(expected, wanted, g), strict=True):
            torch.testing.assert_close(a, b)

    def test_sparse_stores_its_synapses_alone(self):
        layer = Sparse(random_mask())
        assert sum(p.numel() for p in layer.parameters()) == int(random_mask().sum())
        assert bool((layer.matrix() != 0).eq(random_mask()).all())

    def test_sparse_product_derivatives_transforms_and_checks(self):
        weight = SparseWeight.of(torch.randn(6, 8).double(), random_mask())
        values = weight.values.detach().requires_grad_()
        x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)

        def f(a, v):
            return sparse_linear(a, SparseWeight(v, weight.starts, weight.targets), 6)

        assert torch.autograd.gradcheck(f, (x, values))
        assert torch.autograd.gradgradcheck(f, (x, values))
        _, tangent = torch.func.jvp(lambda a: f(a, values.detach()), (x.detach(),), (torch.ones(4, 8).double(),))
        torch.testing.assert_close(tangent, f(torch.ones(4, 8).double(), values.detach()))
        torch.testing.assert_close(f(x, values), sparse_reference(x, weight._replace(values=values), 6))
        torch.library.opcheck(torch.ops.plexus.sparse_linear.default, (x, values, weight.starts, weight.targets, 6))

    def test_convolution_over_time_is_torchs(self):
        layer, x = Convolution(2, 4, 3, padding=1, bias=True), torch.rand(5, 3, 2, 7, 6)
        expected = torch.stack([nn.functional.conv2d(frame, layer.weight, layer.bias, padding=1) for frame in x])
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(Sequential(layer)(x)[0], expected)

    def test_refusals(self):
        with pytest.raises(ShapeError):
            Dense(0, 2)
        with pytest.raises(ShapeError):
            Dense(2, 2, mask=torch.ones(3, 2))
        with pytest.raises(ShapeError):
            Dense(2, 2)(torch.rand(3, 3))
        with pytest.raises(ShapeError):
            Sparse(torch.ones(3))
        with pytest.raises(ShapeError):
            Sparse(random_mask())(torch.rand(2, 6))
        with pytest.raises(ShapeError):
            Convolution(2, 4, 3)(torch.rand(5, 3, 3, 7, 6))
        with pytest.raises(DtypeError):
            sparse_linear(torch.rand(2, 8), SparseWeight.of(torch.rand(6, 8).double()), 6)


class TestWiring:
    def test_ring_lattice(self):
        mask = small_world(20, 6, 0.0)
        assert torch.equal(mask, mask.T)
        assert torch.equal(mask, torch.roll(mask, (1, 1), (0, 1)))
        assert torch.equal(mask, (ring_distance(20) <= 3) & ~torch.eye(20, dtype=torch.bool))

    @pytest.mark.parametrize("rewire", [0.1, 0.5, 1.0])
    def test_degree_stays_and_so_many_links_change(self, rewire):
        units, k = 400, 10
        mask = small_world(units, k, rewire, generator=source())
        assert bool((mask.sum(1) == k).all())
        assert not bool(mask.diagonal().any())
        lattice = small_world(units, k, 0.0)
        kept = float((mask & lattice).sum() / lattice.sum())
        # a rewired link may come back to the lattice, with a chance of about the lost ones over the free ones
        lost = rewire * k
        expected = 1 - rewire + rewire * lost / (units - 1 - k + lost)
        assert kept == pytest.approx(expected, abs=4 * math.sqrt(0.25 / (units * k)))

    def test_few_changes_shorten_paths_and_keep_clusters(self):
        def clustering(mask: torch.Tensor) -> float:
            a = (mask | mask.T).double()
            triangles, degree = (a @ a @ a).diagonal(), a.sum(1)
            return float((triangles / (degree * (degree - 1))).mean())

        def path(mask: torch.Tensor) -> float:
            a = (mask | mask.T).double()
            reached, total = torch.eye(len(a), dtype=torch.bool), 0.0
            for step in range(1, len(a)):
                grown = reached | ((reached.double() @ a) > 0)
                total += step * float((grown & ~reached).sum())
                if bool(grown.all()):
                    break
                reached = grown
            return total / (len(a) * (len(a) - 1))

        lattice, small, random = (small_world(200, 8, beta, generator=source()) for beta in (0.0, 0.05, 1.0))
        assert clustering(lattice) == pytest.approx(0.75 * (8 - 2) / (8 - 1))  # Watts & Strogatz, any ring lattice
        assert path(small) < 0.5 * path(lattice)
        assert clustering(small) > 0.6 * clustering(lattice)
        assert clustering(random) < 0.2 * clustering(lattice)

    def test_new_sources_are_drawn_evenly(self):
        counts = torch.zeros(12)
        for seed in range(600):
            counts += small_world(12, 2, 1.0, generator=source(seed))[0]
        others = counts[1:]
        assert counts[0] == 0
        expected = 600 * 2 / 11
        assert float(((others - expected) ** 2 / expected).sum()) < 29.6  # χ² with 10 degrees of freedom, p = 0.001

    @pytest.mark.parametrize("profile", ["gaussian", "exponential"])
    def test_links_fall_with_distance_as_they_should(self, profile):
        distance = grid_distance(40, 40, wrap=True)
        mask = distance_dependent(distance, 3.0, probability=0.8, profile=profile, generator=source())
        assert not bool(mask.diagonal().any())
        for d in (1.0, 2.0, 5.0):
            at = distance == d
            chance = 0.8 * math.exp(-((d / 3) ** 2) / 2 if profile == "gaussian" else -d / 3)
            error = math.sqrt(chance * (1 - chance) / int(at.sum()))
            assert float(mask[at].float().mean()) == pytest.approx(chance, abs=4 * error)

    def test_distances_are_metric(self):
        for d in (ring_distance(9), grid_distance(3, 4), grid_distance(3, 4, wrap=True)):
            assert torch.equal(d, d.T)
            assert not bool(d.diagonal().any())
            assert bool((d[:, None, :] <= d[:, :, None] + d[None, :, :].transpose(1, 2).mT + 1e-5).all())

    def test_lateral_inhibition_sharpens(self):
        layer = Lateral(ring_distance(31), excitation=0.0, inhibition=0.2, inhibition_width=4.0)
        bump = torch.exp(-((torch.arange(31.0) - 15) ** 2) / 50)
        sharper = (bump + layer(bump)).clamp(min=0)
        assert torch.allclose(layer.weight, layer.weight.T)
        assert not bool(layer.weight.diagonal().any())
        assert (sharper > sharper.max() / 2).sum() < (bump > bump.max() / 2).sum()
        moved = layer(torch.roll(bump, 3))
        torch.testing.assert_close(moved, torch.roll(layer(bump), 3))

    def test_refusals(self):
        for bad in ((10, 3, 0.1), (10, 10, 0.1), (10, 4, 1.5)):
            with pytest.raises(RangeError):
                small_world(*bad)
        with pytest.raises(RangeError):
            distance_dependent(ring_distance(4), 0.0)
        with pytest.raises(UnknownNameError):
            distance_dependent(ring_distance(4), 1.0, profile="gausian")
        with pytest.raises(ShapeError):
            Lateral(torch.rand(3, 4))
        with pytest.raises(RangeError):
            Lateral(ring_distance(4), inhibition_width=0.0)
