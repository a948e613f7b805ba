"""`AstroSNN` as a Hugging Face model: configuration, saving, generation with a state in place of a growing cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from plexus.errors import ShapeError, require
from plexus.nn.models._astro_snn import AstroSNN, State
from plexus.nn.neurons import AstrocyteUnit

# by name, so that types are checked alike whether or not the optional package is there
_transformers: Any = require("transformers", "llm", purpose="AstroSNNForCausalLM")
_outputs: Any = require("transformers.modeling_outputs", "llm", purpose="AstroSNNForCausalLM")
_Config: Any = _transformers.PretrainedConfig
_Model: Any = _transformers.PreTrainedModel
_Generates: Any = _transformers.GenerationMixin

__all__ = ["AstroSNNCache", "AstroSNNConfig", "AstroSNNForCausalLM"]


class AstroSNNConfig(_Config):  # type: ignore[misc]
    """Sizes of an `AstroSNNForCausalLM`.

    Args:
        vocab_size: number of tokens.
        hidden_size: width of the residual stream, and units per layer.
        num_hidden_layers: number of blocks.
        intermediate_size: spiking channels of the mixing within a step; None: twice the width.
        tau_range, rank, use_post, gain, bias: of the `AstrocyteUnit`; time constants in steps.

    Examples:
        >>> AstroSNNConfig(vocab_size=50, hidden_size=16).num_hidden_layers
        2
    """

    model_type = "plexus_astro_snn"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 96,
        num_hidden_layers: int = 2,
        intermediate_size: int | None = None,
        tau_range: tuple[float, float] = (2.0, 150.0),
        rank: int | None = 16,
        use_post: bool = True,
        gain: bool = True,
        bias: bool = True,
        tie_word_embeddings: bool = True,
        **others: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.intermediate_size = 2 * hidden_size if intermediate_size is None else intermediate_size
        self.tau_range, self.rank = list(tau_range), rank
        self.use_post, self.gain, self.bias = use_post, gain, bias
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)


class AstroSNNCache:
    """What generation carries from token to token: the units' state, as large after a book as after a word.

    Examples:
        >>> import torch
        >>> model = AstroSNNForCausalLM(AstroSNNConfig(vocab_size=50, hidden_size=16))
        >>> cache = model(torch.zeros(1, 9, dtype=torch.long)).past_key_values
        >>> cache.get_seq_length(), cache.nbytes()
        (9, 384)
    """

    is_compileable = False

    def __init__(self, state: State, seen: int) -> None:
        self.state, self._seen = state, seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens that went into the state."""
        return self._seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on from other beams."""
        self.state = tree_map(lambda part: part.index_select(0, beam_idx), self.state)

    def nbytes(self) -> int:
        """Size of the state in bytes, over the whole batch."""
        sizes: list[int] = []
        tree_map(lambda part: sizes.append(part.numel() * part.element_size()), self.state)
        return sum(sizes)


class AstroSNNForCausalLM(_Model, _Generates):  # type: ignore[misc]
    """`model(input_ids).logits`, `model.generate(input_ids)`: a language model of astrocyte-modulated spiking units.

    Batch-first, as Hugging Face models are. Tokens that `attention_mask` hides are silence: a unit at rest stays at
    rest, so left padding changes nothing. Where `document_starts` `[batch, time]` is true
    a document begins, from rest.

    Raises:
        ShapeError: neither or both of `input_ids` and `inputs_embeds` are given.

    Examples:
        >>> import torch
        >>> model = AstroSNNForCausalLM(AstroSNNConfig(vocab_size=50, hidden_size=16))
        >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0).shape
        torch.Size([1, 7])
    """

    config_class = AstroSNNConfig
    base_model_prefix = "model"
    _is_stateful = True  # a state cannot be cut back to fewer tokens, so decoding that needs that is refused
    _tied_weights_keys = {"lm_head.weight": "model.embed.weight"}  # noqa: RUF012  (the name transformers looks for)

    def __init__(self, config: AstroSNNConfig) -> None:
        super().__init__(config)

        def unit(units: int) -> nn.Module:
            rank = config.rank if config.rank is None else min(config.rank, units)
            shortest, longest = config.tau_range
            return AstrocyteUnit(
                units, (shortest, longest), rank, use_post=config.use_post, gain=config.gain, bias=config.bias
            )

        self.model = AstroSNN(
            config.vocab_size,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            mix=config.intermediate_size,
            unit=unit,
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the modules have drawn their weights when they were made."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state stands in for it

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.model.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding of tokens."""
        self.model.embed = value

    def get_output_embeddings(self) -> nn.Module:
        """The map from the stream to logits; its weight is the embedding's where they are tied."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the map from the stream to logits."""
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: AstroSNNCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        document_starts: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Logits `[batch, time, token]`, and the loss where labels are given (shifted here, -100 is left out)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ShapeError("give input_ids or inputs_embeds", given="both" if input_ids is not None else "neither")
        x = self.model.embed(input_ids) if inputs_embeds is None else inputs_embeds
        steps = x.shape[1]
        if attention_mask is not None:
            x = x * attention_mask[:, -steps:, None].to(x.dtype)
        state, seen = (None, 0) if past_key_values is None else (past_key_values.state, past_key_values._seen)
        reset = None if document_starts is None else document_starts[:, -steps:].T.bool()
        stream, state = self.model.stream(x.transpose(0, 1), state, reset=reset)
        kept = stream.transpose(0, 1)[:, -logits_to_keep:]
        logits = self.lm_head(self.model.norm(kept))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **others)
        cache = AstroSNNCache(state, seen + steps) if use_cache is None or use_cache else None
        out = _outputs.CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return out if return_dict is None or return_dict else out.to_tuple()
