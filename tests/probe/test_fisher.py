"""The diagonal Fisher against closed forms, a naive loop, and models of other kinds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plexus.errors import FormatError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.probe.scores import Importances, diagonal_fisher
from plexus.units._files import write_tensors


def naive(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One backward pass per example, in the plainest way."""
    model = copy.deepcopy(model).eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for k in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[k : k + 1]), y[k : k + 1]).backward()
        for name, p in model.named_parameters():
            sums[name] += p.grad**2
    return {name: value / len(x) for name, value in sums.items()}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-8 + rtol * float(value.abs().max()) * 1e-2)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, 3))


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), d=st.integers(1, 5))
def test_logistic_regression_has_the_known_information(seed: int, n: int, d: int) -> None:
    """A two-class softmax with weights w0, w1: (∂ℓ/∂w1)² = (p - y)² x², in expectation p (1 - p) x²."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(d, 2).double()
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (n,), generator=generator)
    p = model(x).detach().softmax(1)[:, 1]
    options = {"dtype": torch.float64}
    observed = diagonal_fisher(model, [(x, y)], **options)
    torch.testing.assert_close(observed["weight"][1], ((p - y) ** 2 @ x**2) / n)
    torch.testing.assert_close(observed["bias"], ((p - y) ** 2).mean().expand(2))
    expected = diagonal_fisher(model, [x], labels="expected", **options)
    torch.testing.assert_close(expected["weight"], ((p * (1 - p)) @ x**2 / n).expand(2, d))


def test_drawn_labels_come_to_the_expectation() -> None:
    torch.manual_seed(3)
    model, x = nn.Linear(3, 4), torch.randn(1, 3).expand(20_000, 3)
    exact = diagonal_fisher(model, [x[:1]], labels="expected")
    drawn = diagonal_fisher(model, [x], labels="model", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn["weight"], exact["weight"], rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("model", [mlp(), cnn()], ids=["mlp", "cnn"])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_equals_the_naive_loop(model: nn.Module, chunk: int | None) -> None:
    torch.manual_seed(1)
    x = torch.randn(11, 5) if isinstance(model[0], nn.Linear) else torch.randn(11, 1, 8, 8)
    y = torch.randint(0, 3, (11,))
    found = diagonal_fisher(model, [(x[:4], y[:4]), (x[4:], y[4:])], chunk=chunk)
    close(found, naive(model, x, y))
    assert (found.samples, found.batches, found.mode) == (11, 2, "sample")


def test_batch_mode_is_the_square_of_the_mean_gradient() -> None:
    torch.manual_seed(1)
    model, x, y = mlp().eval(), torch.randn(10, 5), torch.randint(0, 3, (10,))
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for part in (slice(0, 6), slice(6, 10)):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[part]), y[part]), list(model.parameters()))
        for value, gradient in zip(wanted.values(), gradients, strict=True):
            value += gradient**2 / 2
    close(diagonal_fisher(model, [(x[:6], y[:6]), (x[6:], y[6:])], mode="batch"), wanted)


def test_modes_agree_on_batches_of_one() -> None:
    torch.manual_seed(2)
    model, x, y = mlp(), torch.randn(6, 5), torch.randint(0, 3, (6,))
    ones = [(x[k : k + 1], y[k : k + 1]) for k in range(6)]
    close(diagonal_fisher(model, ones, mode="batch"), diagonal_fisher(model, [(x, y)]))


def test_sample_mode_does_not_depend_on_the_batches() -> None:
    torch.manual_seed(2)
    model, x, y = mlp(), torch.randn(9, 5), torch.randint(0, 3, (9,))
    order = torch.randperm(9)
    close(diagonal_fisher(model, [(x[order[:2]], y[order[:2]]), (x[order[2:]], y[order[2:]])]),
          diagonal_fisher(model, [(x, y)]))  # fmt: skip


def test_the_part_is_bounded_by_the_whole() -> None:
    """n I_D = m I_F + (n - m) I_R, so I_F / I_D <= n / m everywhere."""
    torch.manual_seed(4)
    model, x, y = mlp(), torch.randn(30, 5), torch.randint(0, 3, (30,))
    whole, part = diagonal_fisher(model, [(x, y)]), diagonal_fisher(model, [(x[:5], y[:5])])
    for name, value in whole.items():
        assert bool((part[name] <= 6 * value * (1 + 1e-5)).all())


class Branching(nn.Module):
    """`torch.func.vmap` cannot follow a branch on data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if float(x.sum()) > 0 else self.linear(2 * x)


def test_a_model_that_vmap_cannot_follow() -> None:
    torch.manual_seed(5)
    model, x, y = Branching(), torch.randn(8, 5), torch.randint(0, 3, (8,))
    close(diagonal_fisher(model, [(x, y)]), naive(model, x, y))


def test_leaves_the_model_as_it_was() -> None:
    model = cnn()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    diagonal_fisher(model, [(torch.randn(4, 1, 8, 8, generator=torch.Generator()), torch.tensor([0, 1, 2, 0]))])
    assert model.training
    assert not model[1].training
    assert model[0].training
    assert bool((model[0].weight.grad == 1).all())
    assert model[4].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_flags_are_put_back_after_an_error() -> None:
    model = mlp()
    with pytest.raises(RangeError, match="not finite"):
        diagonal_fisher(model, [(torch.full((2, 5), torch.nan), torch.tensor([0, 1]))])
    assert model.training


def test_works_under_no_grad_and_without_labels() -> None:
    model, x = mlp().eval(), torch.randn(6, 5)
    with torch.no_grad():
        found = diagonal_fisher(model, [x], loss="norm", power=1)
    sums = torch.zeros(3)
    for row in x:
        (gradient,) = torch.autograd.grad(model(row).square().sum(), [model[3].bias])
        sums += gradient.abs() / 6
    torch.testing.assert_close(found["3.bias"], sums)


def test_a_loss_of_ones_own_equals_the_named_one() -> None:
    torch.manual_seed(6)
    model, x, y = mlp(), torch.randn(6, 5), torch.randint(0, 3, (6,))

    def own(output: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(output, targets)

    for mode in ("sample", "batch"):
        found = diagonal_fisher(model, [(x, y)], own, mode)
        close(found, diagonal_fisher(model, [(x, y)], "ce", mode))
        assert found.loss == "own"


def test_temperature_is_a_division_of_the_logits() -> None:
    torch.manual_seed(6)
    model, x, y = nn.Linear(5, 3), torch.randn(6, 5), torch.randint(0, 3, (6,))
    warm = copy.deepcopy(model)
    with torch.no_grad():
        for p in warm.parameters():
            p /= 4
    found = diagonal_fisher(model, [(x, y)], temperature=4.0)
    close(found, {name: value / 16 for name, value in diagonal_fisher(warm, [(x, y)]).items()})


def test_tied_weights_once_with_both_contributions() -> None:
    torch.manual_seed(7)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).mean(1))

    model, x, y = Tied(), torch.randint(0, 6, (5, 3)), torch.randint(0, 6, (5,))
    found = diagonal_fisher(model, [(x, y)])
    assert list(found) == ["embed.weight"]
    close(found, naive(model, x, y))


def test_time_first_input() -> None:
    torch.manual_seed(8)
    rnn = nn.RNN(2, 3)
    x, y = torch.randn(4, 6, 2), torch.randint(0, 3, (6,))

    def last(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)[0][-1]

    found = diagonal_fisher(rnn, [(x, y)], forward=last, sample_dim=1)
    sums = torch.zeros_like(rnn.weight_hh_l0)
    for k in range(6):
        sums += (
            torch.autograd.grad(F.cross_entropy(rnn(x[:, k : k + 1])[0][-1], y[k : k + 1]), rnn.weight_hh_l0)[0] ** 2
        )
    torch.testing.assert_close(found["weight_hh_l0"], sums / 6)
    with pytest.raises(UnsupportedError, match="logits"):
        diagonal_fisher(rnn, [(x, y)], sample_dim=1)


def test_hugging_face_causal_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(9)
    config = transformers.GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.randint(0, 20, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    found = diagonal_fisher(model, [{"input_ids": ids, "attention_mask": mask}])
    model.eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for k, length in enumerate((7, 5, 7)):
        loss = model(input_ids=ids[k : k + 1, :length], labels=ids[k : k + 1, :length]).loss
        for total, gradient in zip(sums.values(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total += gradient**2 / 3
    for name, value in sums.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)
    assert "lm_head.weight" not in found


def test_bfloat16_is_summed_in_float32() -> None:
    model = mlp().bfloat16()
    found = diagonal_fisher(model, [(torch.randn(4, 5).bfloat16(), torch.tensor([0, 1, 2, 0]))])
    assert found["0.weight"].dtype == torch.float32
    assert bool(found["0.weight"].any())


def test_params_choose() -> None:
    model, batch = mlp(), (torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    assert list(diagonal_fisher(model, [batch], params="3.*")) == ["3.weight", "3.bias"]
    assert list(diagonal_fisher(model, [batch], params=["*.bias"])) == ["0.bias", "3.bias"]
    assert list(diagonal_fisher(model, [batch], params=lambda name: name == "0.bias")) == ["0.bias"]
    model[0].requires_grad_(False)
    assert list(diagonal_fisher(model, [batch])) == ["3.weight", "3.bias"]


def test_round_trip(tmp_path) -> None:
    found = diagonal_fisher(mlp(), [(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))], mode="batch")
    path = tmp_path / "importances.safetensors"
    found.save(path)
    again = Importances.load(path)
    assert list(tmp_path.iterdir()) == [path]
    assert again._about() == found._about()
    assert set(again) == set(found)
    for name in found:
        assert torch.equal(again[name], found[name])
    copied = copy.deepcopy(found)
    assert copied.mode == "batch"
    assert copied.samples == 4


def test_files_that_are_not_ours_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "importances.safetensors"
    diagonal_fisher(mlp(), [(torch.randn(2, 5), torch.tensor([0, 1]))]).save(path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:4], b"", b"PK\x03\x04" + whole):
        path.write_bytes(broken)
        with pytest.raises(FormatError):
            Importances.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(FormatError, match="not ours"):
        Importances.load(path)
    write_tensors(path, "recording", 1, {}, {"a": torch.ones(1)})
    with pytest.raises(FormatError, match="something else"):
        Importances.load(path)
    write_tensors(path, "importances", 99, {}, {"a": torch.ones(1)})
    with pytest.raises(FormatError, match="version"):
        Importances.load(path)
    header = '{"kind": "importances", "version": 1}'
    save_file({"a": torch.ones(1)}, path, metadata={"plexus": header, "body": "[1"})
    with pytest.raises(FormatError, match="header"):
        Importances.load(path)
    for about in ([1], {"samples": 3}, None):
        write_tensors(path, "importances", 1, about, {"a": torch.ones(1)})
        with pytest.raises(FormatError, match="as importances"):
            Importances.load(path)
    with pytest.raises(UnknownNameError, match="there is no importances file"):
        Importances.load(tmp_path / "nowhere")


def test_unwritable_folder_leaves_nothing(tmp_path) -> None:
    importances = diagonal_fisher(mlp(), [(torch.randn(2, 5), torch.tensor([0, 1]))])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write"):
        importances.save(tmp_path / "file" / "importances")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    importances.save(tmp_path / "new" / "importances")
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["importances"]


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_missing_gradients_are_named(mode: str) -> None:
    batch = (torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(UnsupportedError, match=r"idle\.bias"):
        diagonal_fisher(Unused(), [batch], mode=mode)
    assert len(diagonal_fisher(Unused(), [batch], mode=mode, params="used*")) == 2


def test_bad_input() -> None:
    model, x, y = mlp(), torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    with pytest.raises(RangeError, match="no example"):
        diagonal_fisher(model, [])
    with pytest.raises(RangeError, match="no example"):
        diagonal_fisher(model, [(x[:0], y[:0])])
    with pytest.raises(ShapeError, match="labels do not match"):
        diagonal_fisher(model, [(x, y[:3])])
    with pytest.raises(UnsupportedError, match="needs labels"):
        diagonal_fisher(model, [x])
    with pytest.raises(ShapeError, match="a batch is"):
        diagonal_fisher(model, ["text"])
    with pytest.raises(UnknownNameError, match="mode"):
        diagonal_fisher(model, [(x, y)], mode="samples")
    with pytest.raises(UnknownNameError, match="loss"):
        diagonal_fisher(model, [(x, y)], loss="cross")
    with pytest.raises(UnknownNameError, match="parameter"):
        diagonal_fisher(model, [(x, y)], params="9.*")
    with pytest.raises(UnsupportedError, match="per example"):
        diagonal_fisher(model, [(x, y)], mode="batch", labels="expected")
    with pytest.raises(UnsupportedError, match="cross-entropy"):
        diagonal_fisher(model, [(x, y)], loss="norm", labels="model")
    with pytest.raises(RangeError, match="temperature"):
        diagonal_fisher(model, [(x, y)], temperature=0.0)
    with pytest.raises(ShapeError, match="scalar"):
        diagonal_fisher(model, [(x, y)], loss=lambda output, y: output)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(RangeError, match="not finite"):
        diagonal_fisher(model, [(x, y)])


def test_offloaded_weights_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].to("meta")
    with pytest.raises(UnsupportedError, match=r"offloaded(.|\n)*2 of 4 parameters, 1.weight"):
        diagonal_fisher(model, [(torch.randn(2, 3), torch.tensor([0, 1]))])
