"""Tiny causal language models, trained once and kept by content.

    loss       cross-entropy of the next token, over the whole text or the answer alone
    optimiser  AdamW, one cycle of the rate (up over a tenth of the steps, then down by a cosine), clipped gradient

The model is an ordinary `AutoModelForCausalLM` with an ordinary tokenizer: whatever works on it works on a checkpoint
from elsewhere. It is kept as one, under a hash of everything that made it: texts, settings, the code that trains, the
versions of torch and transformers, and the model it started from.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from plexus.data.corpora import Item, word_tokenizer
from plexus.errors import DtypeError, RangeError, UnknownNameError, require
from plexus.lab._code import file_hash
from plexus.lab._store import cache_folder
from plexus.lab.models import _rows
from plexus.probe._progress import tracked
from plexus.probe._quiet import random_state_kept

APART = 1_000_003  # between the seeds of two attempts


class Gate(Protocol):
    """What a model has to reach: `gate(model, tokenizer) -> {name: (value, the least that it should be)}`."""

    def __call__(self, model: nn.Module, tokenizer: Any, /) -> Mapping[str, tuple[float, float]]:
        """Measure a model."""
        ...


class Quality(NamedTuple):
    """A measure of a model and the least that it should be.

    Examples:
        >>> Quality(0.97, 0.95).passed
        True
    """

    value: float
    at_least: float

    @property
    def passed(self) -> bool:
        """Whether the value reaches the bar."""
        return self.value >= self.at_least


class LanguageModel(NamedTuple):
    """A trained model, its tokenizer and how it did at the gate.

    Attributes:
        model: in evaluation mode.
        tokenizer: pads on the left.
        quality: what the gate measured, by name.
        attempts: how many trainings it took.
    """

    model: Any
    tokenizer: Any
    quality: dict[str, Quality]
    attempts: int = 1

    @property
    def passed(self) -> bool:
        """Whether every measure of the gate reaches its bar."""
        return all(quality.passed for quality in self.quality.values())


def train_language_model(
    texts: Sequence[str | Item],
    *,
    tokenizer: Any = None,
    architecture: Any = "llama",
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    intermediate: int | None = None,
    steps: int = 400,
    batch: int = 64,
    rate: float = 5e-3,
    weight_decay: float = 0.01,
    loss: Literal["text", "answer", "both"] = "text",
    window: int | None = None,
    seed: int = 0,
    start: Any = None,
    gate: Gate | None = None,
    attempts: int = 1,
    failing: Literal["raise", "record"] = "raise",
    cache: str | os.PathLike[str] | bool = True,
    progress: bool | None = None,
) -> LanguageModel:
    """Train a small language model, or fetch it where the same was trained before.

    The same texts, settings, seed and number of threads give the same weights, bit for bit; the random state of the
    caller is left alone. Several processes may ask for one model at once: each sees a whole checkpoint or none.

    Args:
        texts: sentences, or items with an answer. Each is one row, with `<s>` before and `</s>` after it.
        tokenizer: of the model; default: the words of the texts.
        architecture: "llama", "gpt2", or a configuration of transformers, whose vocabulary is set to the tokenizer's.
        layers: number of blocks.
        hidden: width of the residual stream.
        heads: of attention, per layer.
        intermediate: hidden units of an MLP; default: 3 × `hidden` for "llama", 4 × for "gpt2".
        steps: of the optimiser.
        batch: rows a step.
        rate: highest learning rate.
        weight_decay: of AdamW.
        loss: on every token of a text; on the answer (and the end) of items alone; or on both, half the weight each.
        window: join the texts and cut them into rows of so many tokens, for running text.
        seed: of weights and batches.
        start: a trained model to continue from, which stays as it is; its own tokenizer is to be passed.
        gate: `gate(model, tokenizer) -> {name: (value, at least)}`, measured anew each time, on fetched models too;
            what it measured stands in `quality.json` beside the kept model.
        attempts: how often to train at most, from other weights and batches each time, until a model passes its gate:
            now and then a tiny one does not take off.
        failing: what a value below its bar does in the last attempt: raise, or be recorded in `quality` alone.
        cache: where models are kept: a folder; True for `PLEXUS_CACHE` or the user's cache folder; False for nowhere.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Returns:
        Model (in evaluation mode), tokenizer, quality.

    Raises:
        RangeError: numbers that make no model or training, a loss that is not finite, a value below its bar.
        UnknownNameError: an architecture or choice that does not exist, a word that the tokenizer does not know.
        DtypeError: `start` without its tokenizer.
        MissingExtraError: without the extra `llm`.

    Examples:
        >>> made = train_language_model(["a b c", "b c a"], layers=1, hidden=8, heads=2, steps=3, cache=False)
        >>> type(made.model).__name__, len(made.tokenizer), made.quality
        ('LlamaForCausalLM', 7, {})
    """
    if min(layers, hidden, heads, steps, batch, attempts) < 1 or not (rate > 0 and weight_decay >= 0):
        raise RangeError(
            "these numbers make no model",
            given=f"{layers=}, {hidden=}, {heads=}, {steps=}, {batch=}, {attempts=}, {rate=}, {weight_decay=}",
            expected="positive ones",
        )
    if failing not in ("raise", "record"):
        raise UnknownNameError.among("choice of `failing`", str(failing), ("raise", "record"))
    if start is not None and tokenizer is None:
        raise DtypeError("a model that is continued brings its tokenizer", mend="pass tokenizer=")
    tokenizer = word_tokenizer(texts) if tokenizer is None else tokenizer
    rows = _rows.rows_of(texts, tokenizer, loss, window)
    if start is None:
        longest = max(64, 2 * rows.tokens.shape[1])
        config = _config(architecture, tokenizer, layers, hidden, heads, intermediate, longest)
        origin = json.dumps([config.to_dict(), type(config).__name__], sort_keys=True, default=str)
    else:
        origin = _weights_hash(start)
    folder = _folder(cache)
    for attempt in range(attempts):
        own = seed + attempt * APART
        recipe = {
            "steps": steps,
            "batch": batch,
            "rate": rate,
            "weight_decay": weight_decay,
            "seed": own,
            "threads": torch.get_num_threads(),
        }
        place = None if folder is None else folder / _key(rows, tokenizer, origin, recipe)
        model = None if place is None else _fetched(place)
        if model is None:
            with random_state_kept():
                torch.manual_seed(own)
                model = copy.deepcopy(start) if start is not None else _built(config)
                _train(model, rows, steps, batch, rate, weight_decay, own, progress)
            if place is not None:
                with contextlib.suppress(OSError):  # a full or read-only folder costs a training, not the result
                    _keep(place, model, tokenizer)
        model.eval()
        measured = {} if gate is None else gate(model, tokenizer)
        if not isinstance(measured, Mapping):
            raise DtypeError(
                "a gate gives what it measured by name",
                given=type(measured).__name__,
                expected='{name: (value, at least)}, for instance {"recall": (0.97, 0.95)}',
            )
        quality = {name: Quality(float(value), float(bar)) for name, (value, bar) in measured.items()}
        made = LanguageModel(model, tokenizer, quality, attempt + 1)
        if place is not None and quality:
            with contextlib.suppress(OSError):
                _note(place / "quality.json", quality)
        if made.passed:
            break
    if failing == "raise" and not made.passed:
        raise RangeError(
            "the model does not pass its gate",
            given=", ".join(f"{name} {q.value:.4g}" for name, q in quality.items()),
            expected=", ".join(f"{name} at least {q.at_least:.4g}" for name, q in quality.items()),
            mend='train longer or wider, or pass failing="record"',
        )
    return made


def _config(
    architecture: Any, tokenizer: Any, layers: int, hidden: int, heads: int, intermediate: int | None, longest: int
) -> Any:
    transformers = require("transformers", "llm", purpose="language models")
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    tokens: dict[str, Any] = {f"{name}_token_id": token for name, token in ids.items()}
    tokens |= {"vocab_size": len(tokenizer), "tie_word_embeddings": False}
    if not isinstance(architecture, str):
        config = copy.deepcopy(architecture)
        if not isinstance(config, transformers.PretrainedConfig):
            raise DtypeError(
                "an architecture is a name or a configuration of transformers", given=type(config).__name__
            )
        for name, value in tokens.items():
            if name != "tie_word_embeddings":
                setattr(config, name, value)
        return config
    if hidden % heads:
        raise RangeError("the heads do not share the width evenly", given=f"{hidden} / {heads}")
    if architecture == "llama" and hidden // heads % 2:
        raise RangeError(
            "rotary positions need heads of even width", given=f"{hidden} / {heads} = {hidden // heads}",
            mend="change hidden= or heads=",
        )  # fmt: skip
    spread = 0.8 / math.sqrt(hidden)  # the usual 0.02 is meant for widths of a thousand and slows small models down
    if architecture == "llama":
        return transformers.LlamaConfig(
            hidden_size=hidden, intermediate_size=intermediate or 3 * hidden, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=longest, initializer_range=spread, **tokens,
        )  # fmt: skip
    if architecture == "gpt2":
        return transformers.GPT2Config(
            n_embd=hidden, n_inner=intermediate or 4 * hidden, n_layer=layers, n_head=heads, n_positions=longest,
            initializer_range=spread, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **tokens,
        )  # fmt: skip
    raise UnknownNameError.among("architecture", architecture, ("llama", "gpt2"))


def _built(config: Any) -> Any:
    transformers = require("transformers", "llm", purpose="language models")
    return transformers.AutoModelForCausalLM.from_config(config)


def _train(
    model: nn.Module, rows: _rows.Rows, steps: int, size: int, rate: float, decay: float, seed: int, show: bool | None
) -> None:
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=rate, weight_decay=decay, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.1)
    device = learnt[0].device
    model.train()
    feed = _rows.batches(rows, size, steps, torch.Generator().manual_seed(seed))
    for tokens, targets, weights in tracked(feed, "language model", steps, show):
        # the padding is on the right, where causal attention never looks: no mask is needed
        logits: Tensor = model(input_ids=tokens.to(device), use_cache=False).logits
        each = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().to(device), reduction="none")
        loss = each @ (weights / weights.sum()).flatten().to(device)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
    if not bool(torch.isfinite(loss)):
        raise RangeError("the training diverged", given=f"loss {loss.item():.4g}", mend="lower the rate")


def _folder(cache: str | os.PathLike[str] | bool) -> Path | None:
    if isinstance(cache, bool):
        named = os.environ.get("PLEXUS_CACHE")
        return ((Path(named) if named else cache_folder()) / "models") if cache else None
    return Path(cache)


def _key(rows: _rows.Rows, tokenizer: Any, origin: str, recipe: Mapping[str, Any]) -> str:
    transformers = require("transformers", "llm", purpose="language models")
    digest = hashlib.sha256()
    for tensor in rows:
        digest.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    words = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    code = [file_hash(__file__), file_hash(_rows.__file__)]
    versions = [torch.__version__, transformers.__version__]
    digest.update(json.dumps([words, origin, dict(recipe), code, versions], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _weights_hash(model: Any) -> str:
    settings: dict[str, Any] = model.config.to_dict()
    # what says where a model came from, not what it computes: a fetched model is the one that was trained
    for name in ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"):
        settings.pop(name, None)
    digest = hashlib.sha256(json.dumps([type(model).__name__, settings], sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + str(value.dtype).encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.dim()
            else repr(value.item()).encode()
        )
    return digest.hexdigest()


def _fetched(place: Path) -> Any:
    if not place.is_dir():
        return None
    transformers = require("transformers", "llm", purpose="language models")
    try:
        with _no_bars():
            return transformers.AutoModelForCausalLM.from_pretrained(place, dtype="auto")
    except Exception:  # a damaged folder counts as absent, whatever the reader of it raises
        shutil.rmtree(place, ignore_errors=True)
        return None


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which a model of a megabyte does not need."""
    logging = require("transformers.utils.logging", "llm", purpose="language models")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _note(path: Path, quality: Mapping[str, Quality]) -> None:
    """Write beside a kept model what it last measured on its gate."""
    text = json.dumps({name: {"value": q.value, "at_least": q.at_least} for name, q in quality.items()}, indent=1)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        whole = path.with_name(f".{path.name}.{os.getpid()}")
        whole.write_text(text, encoding="utf-8")
        whole.replace(path)


def _keep(place: Path, model: Any, tokenizer: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        with _no_bars():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(place)  # fails where another process was first: its folder stays and ours goes
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
