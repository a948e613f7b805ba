"""Recurrent loops: fused against the reference, dense against sparse, gradients, transforms, compilers, memory."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

from plexus.errors import DeviceError, DtypeError, ShapeError
from plexus.kernels import LIFState, SparseWeight, Surrogate, _recurrent_loop, lif
from plexus.units import Port

VARIANTS = {
    "soft": {},
    "delayed hard": {"reset": "hard", "reset_value": 0.1, "delayed_reset": True},
    "refractory, resting": {"refractory": 2, "rest": -0.3},
    "ported": {"port": Port(gain=torch.tensor(0.5), high=torch.tensor(0.75))},
}


def uniform(*shape, dtype=torch.float64, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(x, state, decay, recurrent, backend, **variant):
    leaves = [t.detach().clone().requires_grad_() for t in (x, state.v, state.z, decay)]
    x, v, z, decay = leaves
    sparse = isinstance(recurrent, SparseWeight)
    weight = (recurrent.values if sparse else recurrent).detach().clone().requires_grad_()
    given_weight = recurrent._replace(values=weight) if sparse else weight
    out, after = lif(x, LIFState(v, z, state.r), decay=decay, recurrent=given_weight, backend=backend, **variant)
    ramp = torch.linspace(-1, 2, out.numel(), dtype=x.dtype).view(out.shape).sin()
    loss = (out * ramp).sum() + after.v.square().sum() + after.z.sum()
    *found, d_weight = torch.autograd.grad(loss, [*leaves, weight], allow_unused=True)
    if sparse:
        d_weight = recurrent._replace(values=d_weight).dense()
    return out, after, [*found, d_weight]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("soft", torch.float32), *((name, torch.float64) for name in VARIANTS)],
    ids=lambda value: str(value).replace("torch.", ""),
)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 4),
    shape=st.sampled_from([(1,), (17,), (2, 3), (700,)]),
    constant=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_fused_loop_equals_reference(name, dtype, steps, batch, shape, constant, seed):
    size = torch.Size(shape).numel()
    x = uniform(steps, batch, *shape, dtype=dtype, seed=seed) * 2
    if constant:
        x = x[:1].expand(x.shape)
    weight = (uniform(size, size, dtype=dtype, seed=seed + 1) - 0.5) * 2 / size**0.5
    decay = 0.5 + 0.5 * uniform(*shape, dtype=dtype, seed=seed)
    z = (uniform(batch, *shape, dtype=dtype, seed=seed + 2) > 0.5).to(dtype)
    state = LIFState(uniform(batch, *shape, dtype=dtype, seed=seed + 3), z, torch.zeros_like(z))
    fused = run(x, state, decay, weight, "fused", **VARIANTS[name])
    eager = run(x, state, decay, weight, "eager", **VARIANTS[name])
    assert torch.equal(fused[0], eager[0])
    tolerance = {torch.float32: 2e-3, torch.float64: 1e-9}[dtype]
    for a, b in zip((*fused[1], *fused[2]), (*eager[1], *eager[2]), strict=True):
        a, b = (torch.zeros(()) if g is None or not g.numel() else g for g in (a, b))
        scale = max(1.0, b.detach().abs().max().item())
        torch.testing.assert_close(a / scale, b / scale, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_sparse_weights_do_what_their_matrix_does(backend):
    mask = uniform(40, 40) < 0.15
    weight = mask * (uniform(40, 40, seed=1) - 0.4)
    x, decay = uniform(15, 3, 40, seed=2), uniform(40, seed=3)
    zeros = torch.zeros(3, 40, dtype=torch.float64)
    state = LIFState(zeros, zeros + 0.7, zeros)
    port = Port(gain=torch.linspace(0, 1.5, 40))
    dense = run(x, state, decay, weight, "fused", port=port)
    sparse = run(x, state, decay, SparseWeight.of(weight, mask), backend, port=port)
    assert torch.equal(dense[0], sparse[0])
    torch.testing.assert_close(dense[2][:-1], sparse[2][:-1])
    torch.testing.assert_close(dense[2][-1] * mask, sparse[2][-1])
    assert sparse[2][-1].any()


def test_sparse_weight_is_its_matrix():
    mask = uniform(9, 9) < 0.3
    weight = uniform(9, 9, seed=1)
    assert torch.equal(SparseWeight.of(weight, mask).dense(), weight * mask)
    assert torch.equal(SparseWeight.of(weight * mask).dense(), weight * mask)
    assert SparseWeight.of(weight, mask & False).dense().count_nonzero() == 0


def test_without_weight_the_loop_is_the_plain_one():
    x = uniform(30, 2, 12) * 2
    plain, rest = lif(x, decay=0.9)
    for recurrent in (torch.zeros(12, 12).double(), SparseWeight.of(torch.zeros(12, 12).double())):
        spikes, state = lif(x, decay=0.9, recurrent=recurrent)
        assert torch.equal(spikes, plain)
        assert all(torch.equal(a, b) for a, b in zip(state, rest, strict=True))


def test_a_chain_passes_a_spike_on_one_unit_per_step():
    chain = torch.diag(torch.full((4,), 2.0), -1)  # from unit j to unit j + 1
    x = torch.zeros(7, 1, 5)
    x[1, 0, 0] = 2.0
    for recurrent in (chain, SparseWeight.of(chain)):
        spikes, _ = lif(x, decay=0.0, reset="hard", recurrent=recurrent)
        assert spikes.nonzero()[:, [0, 2]].tolist() == [[1, 0], [2, 1], [3, 2], [4, 3], [5, 4]]
        silent, _ = lif(
            x, decay=0.0, reset="hard", recurrent=recurrent, port=Port(gain=torch.tensor([1.0, 1, 0, 1, 1]))
        )
        assert silent.nonzero()[:, [0, 2]].tolist() == [[1, 0], [2, 1]]


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_pieces_equal_the_whole(sparse):
    weight = (uniform(30, 30) - 0.5) * (uniform(30, 30, seed=1) < 0.5)
    recurrent = SparseWeight.of(weight) if sparse else weight
    x = uniform(20, 2, 30, seed=2).requires_grad_()
    whole, after = lif(x, decay=0.8, recurrent=recurrent)
    pieces, state = [], None
    for piece in x.split([1, 7, 0, 12]):
        out, state = lif(piece, state, decay=0.8, recurrent=recurrent)
        pieces.append(out)
    assert torch.equal(torch.cat(pieces), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))
    ramp = torch.arange(20.0).view(-1, 1, 1)
    expected = torch.autograd.grad((whole * ramp).sum() + after.v.sum(), x)[0]
    found = torch.autograd.grad((torch.cat(pieces) * ramp).sum() + state.v.sum(), x)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("delayed", [False, True])
def test_gradients_of_smooth_neurons_are_true(sparse, delayed):
    weight = uniform(4, 4) - 0.5
    start = SparseWeight.of(weight, uniform(4, 4, seed=1) < 0.6)

    def loop(x, values, decay, threshold, v, z):
        recurrent = start._replace(values=values) if sparse else values
        state = LIFState(v, z, torch.zeros_like(v))
        out, after = lif(
            x, state, decay=decay, threshold=threshold, reset="hard", delayed_reset=delayed, smooth=True,
            surrogate=Surrogate("sigmoid", width=0.6), recurrent=recurrent, backend="fused",
        )  # fmt: skip
        return out, after.v, after.z

    tensors = (uniform(5, 2, 4), start.values if sparse else weight, uniform(4), 0.5 + uniform(4), uniform(2, 4))
    leaves = [t.clone().requires_grad_() for t in (*tensors, uniform(2, 4, seed=5))]
    assert torch.autograd.gradcheck(loop, leaves)


def test_stretches_of_a_long_sequence_change_nothing(monkeypatch):
    x, weight = uniform(23, 3, 40) * 2, (uniform(40, 40, seed=1) - 0.5) / 2
    zeros = torch.zeros(3, 40, dtype=torch.float64)
    args = (x, LIFState(zeros, zeros, zeros), uniform(40, seed=2), weight, "fused")
    whole = run(*args, refractory=1, delayed_reset=True)
    monkeypatch.setattr(_recurrent_loop, "_LARGE", 0)
    assert _recurrent_loop._stretch(23, 1) == 5
    parts = run(*args, refractory=1, delayed_reset=True)
    assert torch.equal(whole[0], parts[0])
    assert all(torch.equal(a, b) for a, b in zip(whole[2], parts[2], strict=True))


def test_threads_change_nothing():
    x, weight = torch.rand(3, 300, 1000), torch.randn(1000, 1000) / 30
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            out, state = lif(leaf, decay=0.9, recurrent=SparseWeight.of(weight, torch.rand(1000, 1000) < 0))
            results.append((out, state.v, *torch.autograd.grad(out.sum() + state.v.sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestTransforms:
    x, weight = uniform(6, 3, 4), uniform(4, 4, seed=1) - 0.5

    def loss(self, x, weight):
        spikes, state = lif(x, decay=0.8, threshold=0.4, recurrent=weight)
        return (spikes * x.detach()).sum() + state.v.square().sum()

    def test_gradients_per_sample(self):
        found = vmap(grad(self.loss, argnums=1), in_dims=(1, None))(self.x.unsqueeze(2), self.weight)
        for sample in range(3):
            weight = self.weight.clone().requires_grad_()
            expected = torch.autograd.grad(self.loss(self.x[:, sample : sample + 1], weight), weight)[0]
            assert expected.any()
            torch.testing.assert_close(found[sample], expected)

    @pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
    def test_forward_mode(self, sparse):
        start = SparseWeight.of(self.weight)

        def outputs(values):
            recurrent = start._replace(values=values) if sparse else values
            return lif(self.x, decay=0.8, threshold=0.4, recurrent=recurrent)[0].sum(0)

        values = start.values if sparse else self.weight
        tangent = jvp(outputs, (values,), (torch.ones_like(values),))[1]
        expected = jacrev(outputs)(values).flatten(2).sum(2)
        assert tangent.any()
        torch.testing.assert_close(tangent, expected)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(outputs(forward_ad.make_dual(values, torch.ones_like(values))))
        torch.testing.assert_close(dual.tangent, expected)

    def test_double_backward(self):
        x, weight = (t[..., :2].clone().requires_grad_() for t in (self.x[:4, :2], self.weight[:2]))

        def loop(x, weight):
            surrogate = Surrogate("sigmoid", width=0.5)
            out, state = lif(x, decay=0.8, surrogate=surrogate, smooth=True, recurrent=weight, backend="fused")
            return out, state.v

        assert torch.autograd.gradgradcheck(loop, (x, weight))


def test_operator_keeps_the_contract_of_torch_library():
    lif(torch.rand(1, 1, 1), decay=0.5, recurrent=torch.zeros(1, 1))
    zeros, nothing = torch.zeros(3, 5), torch.zeros(0, dtype=torch.int64)
    columns = [
        torch.tensor([n], requires_grad=k < 5) for k, n in enumerate((0.9, 1.0, 0.4, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))
    ]
    x, weight = torch.rand(4, 3, 5, requires_grad=True), torch.rand(5, 5, requires_grad=True)
    arguments = ([x], [zeros] * 3, columns, [weight], [nothing] * 2, [0.0, 0.3, 1.0], "reset=hard", True)
    torch.library.opcheck(torch.ops.plexus.lif_recurrent.default, arguments)


class TestBadInput:
    x = torch.rand(4, 2, 3)

    @pytest.mark.parametrize(
        ("error", "recurrent"),
        [
            (ShapeError, torch.zeros(2, 3)),
            (ShapeError, torch.zeros(9)),
            (ShapeError, SparseWeight.of(torch.ones(2, 2))),
            (DtypeError, torch.zeros(3, 3).double()),
            (DeviceError, torch.zeros(3, 3, device="meta")),
        ],
        ids=["not square", "flat", "sparse of another size", "dtype", "device"],
    )
    def test_each_has_its_error(self, error, recurrent):
        with pytest.raises(error):
            lif(self.x, decay=0.9, recurrent=recurrent)

    @pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
    def test_empty_input_gives_empty_output(self, shape):
        x = torch.rand(shape, requires_grad=True)
        weight = torch.rand(shape[2], shape[2], requires_grad=True)
        for recurrent in (weight, SparseWeight.of(weight)):
            spikes, state = lif(x, decay=0.9, recurrent=recurrent, backend="fused")
            assert spikes.shape == shape
            assert state.v.shape == shape[1:]
            (spikes.sum() + state.v.sum()).backward()
