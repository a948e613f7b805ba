"""The rules of the hook engine, each with a test that fails without it."""

import copy
import io
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from plexus.errors import DtypeError, ShapeError, SiteError, SiteNotReached, UnknownNameError, UnsupportedError
from plexus.units import Site, Visit, attach, sites


class Change:
    """An edit by a function of the values."""

    records = False

    def __init__(self, site: Site, change: Callable[[Tensor], Tensor | None]) -> None:
        self.site, self.change = site, change

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None:
        return self.change(values)


class Keep:
    """A recorder that keeps what it sees."""

    records = True

    def __init__(self, site: Site) -> None:
        self.site = site
        self.values: list[Tensor] = []
        self.visits: list[Visit] = []

    def __call__(self, values: Tensor, visit: Visit) -> None:
        self.values.append(values.detach().clone())
        self.visits.append(visit)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]])
HIDDEN = Site("1")


def times(factor: float, site: Site = HIDDEN) -> Change:
    return Change(site, lambda values: values * factor)


def plus(amount: float, site: Site = HIDDEN) -> Change:
    return Change(site, lambda values: values + amount)


# --- order, nesting, restoration -------------------------------------------------------------------------------------


def test_edits_apply_in_the_order_entered_and_recorders_see_the_result() -> None:
    model, seen = mlp(), Keep(HIDDEN)
    hidden = torch.tanh(model[0](X))
    with attach(model, [seen]), attach(model, [times(2.0)]), attach(model, [plus(1.0)]):
        out = model(X)
    assert torch.equal(seen.values[0], hidden * 2 + 1)
    assert torch.equal(out, model[2](hidden * 2 + 1))
    with attach(model, [plus(1.0), seen, times(2.0)]):
        model(X)
    assert torch.equal(seen.values[1], (hidden + 1) * 2)


def test_edits_may_be_left_in_any_order() -> None:
    model = mlp()
    hidden = torch.tanh(model[0](X))
    first, second, third = attach(model, [times(2.0)]), attach(model, [plus(1.0)]), attach(model, [times(3.0)])
    for context in (first, second, third):
        context.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(model(X), model[2]((hidden + 1) * 3))
    third.__exit__(None, None, None)
    assert torch.equal(model(X), model[2](hidden + 1))
    second.__exit__(None, None, None)
    assert torch.equal(model(X), model[2](hidden))


def everything_in(model: nn.Module) -> dict[str, Any]:
    return {f"{name}/{key}": value for name, module in model.named_modules() for key, value in vars(module).items()}


def test_leaving_restores_the_model_and_torch_also_after_an_error() -> None:
    model = mlp()
    before, call = copy.deepcopy(everything_in(model)), nn.Module.__call__
    expected = model(X)
    with pytest.raises(ZeroDivisionError), attach(model, [times(0.0), Keep(HIDDEN)]):  # noqa: PT012
        model(X)
        raise ZeroDivisionError
    after = everything_in(model)
    assert before.keys() == after.keys()
    assert all(not hooks for key, hooks in after.items() if "hooks" in key)
    assert nn.Module.__call__ is call
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(model(X), expected)


def test_an_error_inside_an_edit_leaves_the_engine_usable() -> None:
    model = mlp()

    def fail(values: Tensor) -> Tensor:
        raise ArithmeticError

    seen = Keep(HIDDEN)
    with attach(model, [seen]):
        with pytest.raises(ArithmeticError), attach(model, [Change(Site("0"), fail)]):
            model(X)
        model(X)
        assert [visit.call for visit in seen.visits] == [0]  # the broken pass was closed
        assert seen.visits[0].run.index == 1


def test_two_models_and_a_part_of_one_do_not_disturb_each_other() -> None:
    outer, other = nn.Sequential(mlp(), nn.Identity()), mlp()
    hidden = torch.tanh(outer[0][0](X))
    with attach(outer, [times(2.0, Site("0.1"))]), attach(outer[0], [plus(1.0)]), attach(other, [times(0.0)]):
        assert torch.equal(outer(X), outer[0][2](hidden * 2 + 1))
        assert torch.equal(other(X), other[2].bias.expand(2, 2))
    assert torch.equal(outer(X), outer[0][2](hidden))


# --- nothing travels -------------------------------------------------------------------------------------------------


def test_a_copy_made_inside_is_a_copy_without_edits() -> None:
    model = mlp()
    expected = model(X)
    with attach(model, [Change(HIDDEN, lambda values: values * 0)]):
        twin = copy.deepcopy(model)
        shallow = copy.copy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        assert torch.equal(twin(X), expected)
        assert not torch.equal(model(X), expected)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (twin, shallow, loaded):
        assert torch.equal(other(X), expected)
        assert all(not hooks for key, hooks in everything_in(other).items() if "hooks" in key)


def test_another_thread_is_refused_and_a_copy_there_is_free() -> None:
    model, outcome = mlp(), []
    with attach(model, [times(0.0)]):
        twin = copy.deepcopy(model)

        def work() -> None:
            for each in (model, twin):
                try:
                    outcome.append(each(X))
                except UnsupportedError as error:
                    outcome.append(error)
            try:
                with attach(model, [times(1.0)]):
                    pass
            except UnsupportedError as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert isinstance(outcome[0], UnsupportedError)
    assert "another thread" in str(outcome[0])
    assert torch.equal(outcome[1], twin(X))
    assert isinstance(outcome[2], UnsupportedError)


# --- calls, passes, sites --------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()
        self.alias = self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.act(x) + 1)


def test_calls_are_counted_from_the_entry_of_the_model() -> None:
    model, seen = Twice(), Keep(Site("act"))
    with attach(model, [times(0.0, Site("act", call=1)), seen]):
        for _ in range(2):
            assert torch.equal(model(X), torch.zeros_like(X))
    assert [(visit.run.index, visit.call) for visit in seen.visits] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert torch.equal(seen.values[0], torch.tanh(X))
    with attach(model, [times(0.0, Site("alias", call=0))]):  # under its other name it is the same module
        assert torch.equal(model(X), torch.tanh(torch.ones_like(X)))


def test_a_site_that_was_never_reached_is_an_error_on_leaving() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.fused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.used(x), self.fused.weight)

    model = Fused()
    with pytest.raises(SiteNotReached, match="fused"), attach(model, [times(2.0, Site("fused")), Keep(Site("used"))]):
        model(X)
    with attach(model, [times(2.0, Site("fused"))]):
        pass  # the model did not run
    with pytest.raises(SiteNotReached, match="2 time"), attach(twice := Twice(), [Keep(Site("act", call=2))]):
        twice(X)
    with attach(model, [Keep(Site("fused"))], all_reached=False):
        model(X)


def test_a_site_that_is_not_in_the_model_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean '1'"), attach(mlp(), [Keep(Site("11"))]):
        pass


def test_a_module_called_by_itself_is_a_pass_of_its_own() -> None:
    model, seen = mlp(), Keep(HIDDEN)
    with attach(model, [seen]):
        model(X)
        model[1](X)
    assert [(visit.run.index, visit.call) for visit in seen.visits] == [(0, 0), (1, 0)]
    assert seen.visits[1].run.args == (X,)


# --- inputs, leaves, dtypes ------------------------------------------------------------------------------------------


class Named(NamedTuple):
    value: Tensor
    extra: Tensor


class Core(nn.Module):
    def forward(self, x: Tensor, *, gate: Tensor) -> Named:
        return Named(x * gate, x + gate)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = Core()

    def forward(self, x: Tensor) -> Named:
        out = self.core(x=x, gate=x + 1)
        assert type(out) is Named
        return out


def test_keyword_only_calls_and_tuple_outputs() -> None:
    model = Outer()
    with attach(model, [times(2.0, Site("core", at="input", leaf="gate"))]):
        out = model(X)
    assert torch.equal(out.value, X * (2 * (X + 1)))
    with attach(model, [times(3.0, Site("core", at="input"))]):  # the first tensor
        assert torch.equal(model(X).extra, 3 * X + X + 1)
    with attach(model, [plus(1.0, Site("core", leaf="extra"))]):
        out = model(X)
    assert torch.equal(out.extra, X + X + 1 + 1)
    assert torch.equal(out.value, X * (X + 1))
    with attach(model, [plus(1.0, Site("", leaf=1))]):  # the model itself
        assert torch.equal(model(x=X).extra, X + X + 2)


def test_half_precision_is_edited_in_float32_and_cast_back() -> None:
    model = mlp().bfloat16()
    x = X.bfloat16()
    dtypes = []

    def third(values: Tensor) -> Tensor:
        dtypes.append(values.dtype)
        return values * torch.tensor(1 / 3)

    with attach(model, [Change(HIDDEN, third)]):
        out = model(x)
    hidden = torch.tanh(model[0](x))
    assert dtypes == [torch.float32]
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, model[2]((hidden.float() * torch.tensor(1 / 3)).bfloat16()))
    double = mlp().double()
    with attach(double, [Change(HIDDEN, lambda values: values / 3)]):
        out = double(X.double())
    assert torch.equal(out, double[2](torch.tanh(double[0](X.double())) / 3))


def test_an_edit_that_cannot_be_put_back_is_an_error() -> None:
    model = mlp()
    with pytest.raises(ShapeError, match="changed the shape"), attach(model, [Change(HIDDEN, lambda v: v[:1])]):
        model(X)

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    with pytest.raises(DtypeError), attach(lookup := Lookup(), [times(2.0, Site("table", "b u", at="input"))]):
        lookup(torch.zeros(1, 2, dtype=torch.int64))


def test_values_that_the_model_does_not_use_are_read_only(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("gpt2", attn_implementation="eager")
    pattern = Site("transformer.h.0.attn", "b u t s", leaf=1)
    seen = Keep(pattern)
    with attach(model, [seen]):
        model(**inputs, output_attentions=True)
    assert seen.values[0].shape == (2, 6, 6, 4)
    with pytest.raises(SiteError, match="for show"), attach(model, [times(0.0, pattern)]):
        pass
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(SiteError, match="for show"), attach(attention, [times(0.0, Site("", "b u t", leaf=1))]):
        pass


def test_packed_sequences_are_seen_padded_and_packed_again() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4, batch_first=True)})
    rnn = model["rnn"]
    assert isinstance(rnn, nn.LSTM)
    x, lengths = torch.randn(3, 5, 3), torch.tensor([2, 5, 3])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    plain, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True)
    site = Site("rnn", "b t u", where="readout")
    seen = Keep(site)
    weights = torch.arange(5.0)[None, :, None] + torch.arange(3.0)[:, None, None]
    with attach(model, [Change(site, lambda values: values * weights), seen]):
        out, _ = rnn(packed)
    padded, out_lengths = pad_packed_sequence(out, batch_first=True)
    assert torch.equal(padded, plain * weights)
    assert torch.equal(out_lengths, lengths)
    assert torch.equal(out.sorted_indices, packed.sorted_indices)
    assert torch.equal(seen.visits[0].run.mask, torch.arange(5) < lengths[:, None])


# --- torch's fused paths, compiled and checkpointed models -----------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_torch_transformers_are_reached_also_where_they_are_fused(training: bool, padded: bool) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    encoder.train(training)
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    with torch.no_grad():
        plain = encoder(x, src_key_padding_mask=padding)
        seen = Keep(sites.mlp(encoder)[0])
        with attach(encoder, [seen, times(0.0, sites.mlp(encoder)[1])]):
            assert not torch.backends.mha.get_fastpath_enabled()
            out = encoder(x, src_key_padding_mask=padding)
        assert torch.backends.mha.get_fastpath_enabled()
        # by hand: the last layer without its MLP
        layer = encoder.layers[1]
        first = encoder.layers[0](x, src_key_padding_mask=padding)
        attended = layer.norm1(
            first + layer.self_attn(first, first, first, key_padding_mask=padding, need_weights=False)[0]
        )
        expected = layer.norm2(attended + layer.linear2.bias)
    real = torch.ones(2, 5, dtype=torch.bool) if padding is None else ~padding
    assert seen.values[0].shape == (2, 5, 16)
    torch.testing.assert_close(out[real], expected[real])
    assert not torch.allclose(out[real], plain[real])
    if padded:
        assert torch.equal(seen.visits[0].run.mask, real)


def test_the_fast_path_stays_off_if_it_was_off() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with attach(model := mlp(), [times(1.0)]):
            model(X)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_compiled_models_are_refused_with_the_mend() -> None:
    whole, part, inside = mlp(), mlp(), mlp()
    part[1] = torch.compile(part[1])
    inside.compile()
    by_forward = mlp()
    by_forward.forward = torch.compile(by_forward.forward)  # type: ignore[method-assign]
    for model in (torch.compile(whole), part, inside, by_forward):
        with pytest.raises(UnsupportedError, match="_orig_mod"), attach(model, [times(2.0)]):
            pass
    with attach(whole, [times(2.0)]):
        whole(X)


def test_a_model_that_runs_as_copies_is_refused() -> None:
    model = nn.DataParallel(mlp())
    model.device_ids = [0, 1]
    with pytest.raises(UnsupportedError, match="copies"), attach(model, [times(2.0)]):
        pass


def test_others_may_wrap_the_call_of_modules_too() -> None:
    model, call, seen = mlp(), nn.Module.__call__, []
    hidden = torch.tanh(model[0](X))

    def theirs(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(self).__name__)
        return below(self, *args, **kwargs)

    first = attach(model, [times(2.0)])
    first.__enter__()
    below = nn.Module.__call__
    nn.Module.__call__ = theirs  # type: ignore[method-assign]
    try:
        assert torch.equal(model(X), model[2](hidden * 2))
        first.__exit__(None, None, None)  # under their wrapper; ours passes through
        assert torch.equal(model(X), model[2](hidden))
        with attach(model, [times(3.0)]):  # once, not twice
            assert torch.equal(model(X), model[2](hidden * 3))
        assert nn.Module.__call__ is theirs
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]
    assert seen
    with attach(model, [times(4.0)]):
        assert torch.equal(model(X), model[2](hidden * 4))
    assert nn.Module.__call__ is call


def test_what_was_compiled_around_the_model_sees_edits_too() -> None:
    model, other = mlp(), mlp()
    plain = model(X)

    def outside(x: Tensor) -> Tensor:
        return model(x) + other(x)

    before = torch.compile(outside, backend="eager")
    assert torch.equal(before(X), plain + other(X))  # compiled without an edit
    silent = model[2].bias.detach()
    with attach(model, [times(0.0)]):
        assert torch.equal(before(X), silent + other(X))
        inside = torch.compile(model, backend="eager")
        assert torch.equal(inside(X), silent.expand(2, 2))
    assert torch.equal(before(X), plain + other(X))
    assert torch.equal(inside(X), plain)


def test_compiling_for_the_first_time_inside_an_edit() -> None:
    code = """if True:
        import sys, torch
        from torch import nn
        from plexus import edit
        from plexus.units import Neurons, Site
        model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.ones(1, 2)
        original = torch.compile
        with edit.scale(model, ~Neurons.of({Site("1"): 2}), 0.0):
            assert "torch._dynamo" not in sys.modules  # attaching does not load the compiler
            compiled = torch.compile(lambda x: model(x) + 1, backend="eager")
            assert torch.equal(compiled(x), torch.ones(1, 2))
        assert torch.compile is original
        assert torch.equal(compiled(x), model(x) + 1)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Block(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.body, self.reentrant = mlp(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_under_an_edit_has_the_right_gradient_inside(reentrant: bool) -> None:
    model = Block(reentrant)
    plain = Block(None)
    plain.load_state_dict(model.state_dict())
    grads = []
    for each in (plain, model):
        x = X.clone().requires_grad_()
        # squaring makes the gradient depend on the edit; the second call tells whether calls are counted alike twice
        edits = [plus(1.0, Site("body.1")), Change(Site("body.1"), lambda values: values**2)]
        with attach(each, edits):
            each(x).sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in each.parameters())])
    for expected, given in zip(*grads, strict=True):
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_calls_inside_a_checkpointed_part_count_alike_both_times(reentrant: bool) -> None:
    class Repeats(nn.Module):
        def __init__(self, by_checkpoint: bool) -> None:
            super().__init__()
            self.act, self.by_checkpoint = Twice(), by_checkpoint

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x)
            return checkpoint(self.act, x, use_reentrant=reentrant) if self.by_checkpoint else self.act(x)

    grads = []
    for by_checkpoint in (True, False):
        x, model = X.clone().requires_grad_(), Repeats(by_checkpoint)
        with attach(model, [times(3.0, Site("act.act", call=2)), times(-1.0, Site("act.act", call=3))]):
            model(x).pow(2).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_whose_backward_comes_after_the_edit_is_an_error(reentrant: bool) -> None:
    model, x = Block(reentrant), X.clone().requires_grad_()
    edit = [plus(1.0, Site("body.1"))]
    with pytest.raises(UnsupportedError, match="backward has not run"), attach(model, edit):
        out = model(x)
    assert out.requires_grad
    with attach(model, edit):  # no graph, no backward to come
        with torch.no_grad():
            kept = model(x)
        model(x).sum().backward()
    assert kept.shape == (2, 2)
    with attach(model, [Keep(Site("body.1"))]):  # a recorder changes nothing, so there is nothing to fear
        out = model(x)
    out.sum().backward()


def test_recorders_are_told_of_recomputation() -> None:
    model, seen = Block(False), Keep(Site("body.1"))
    with attach(model, [seen]):
        model(X.clone().requires_grad_()).sum().backward()
    assert [visit.recomputing for visit in seen.visits] == [False, True]
    assert [visit.run.index for visit in seen.visits] == [0, 0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_nested_checkpoints_give_the_right_gradient_or_an_error(reentrant: bool) -> None:
    class Nested(nn.Module):
        def __init__(self, nested: bool) -> None:
            super().__init__()
            self.block, self.nested = Block(reentrant if nested else None), nested

        def twice(self, x: Tensor) -> Tensor:
            return self.block(self.block(x.sin()).repeat(1, 2)[:, :3]).cos()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.twice, x, use_reentrant=reentrant) if self.nested else self.twice(x)

    plain, nested = Nested(False), Nested(True)
    nested.load_state_dict(plain.state_dict())
    grads = []
    refused = False
    for model in (plain, nested):
        x = X.clone().requires_grad_()
        with attach(model, [Change(Site("block.body.1"), lambda values: (values + 1) ** 2)]):
            out = model(x)
            try:
                out.sum().backward()
            except UnsupportedError as error:
                refused = "cannot be followed" in str(error)
            del out
        grads.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    if not refused:
        for expected, given in zip(*grads, strict=True):
            torch.testing.assert_close(given, expected)


def test_checkpointing_of_transformers(tiny: Callable[..., Any]) -> None:
    grads = []
    for checkpointed in (False, True):
        model, inputs = tiny("llama")
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        site = sites.mlp(model)[0]
        with attach(model, [Change(site, lambda values: values**2)]):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
        if checkpointed:
            with pytest.raises(UnsupportedError), attach(model, [Change(site, lambda values: values**2)]):
                out = model(**inputs, labels=inputs["input_ids"])
            assert out.loss.requires_grad
    for expected, given in zip(*grads, strict=True):
        torch.testing.assert_close(given, expected)


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_through_an_edit_are_those_of_the_edited_function() -> None:
    model, x = mlp(), X.clone().requires_grad_()
    with attach(model, [Change(HIDDEN, lambda values: values**2 * 3)]):
        model(x).pow(2).sum().backward()
    first, last = model[0], model[2]
    hidden = torch.tanh(first(X))
    out = (hidden**2 * 3) @ last.weight.T + last.bias
    by_hidden = (2 * out) @ last.weight * 6 * hidden  # chain rule by hand
    torch.testing.assert_close(x.grad, (by_hidden * (1 - hidden**2)) @ first.weight)
    torch.testing.assert_close(first.bias.grad, (by_hidden * (1 - hidden**2)).sum(0))
