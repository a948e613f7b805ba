"""What a model is shown: images with classes, or prompts with answers; how a page shows them; what the model says."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plexus.data._padding import padded
from plexus.errors import DtypeError, RangeError, ShapeError, require
from plexus.units._rows import How


class Matter(Protocol):
    """Samples, each of one concept, and how outputs of the model are read.

    Attributes:
        kind: what the pages show: "images" or "texts".
        concepts: names.
        labels: concept of each sample, `[sample]`, in main memory.
        pool: how the values of one sample become one response of a unit.
    """

    kind: str
    concepts: tuple[str, ...]
    labels: Tensor
    pool: How

    def batch(self, index: Tensor) -> Any:
        """The model's input for these samples."""

    def outcome(self, output: Any, index: Tensor) -> Tensor:
        """Log-probability of the right answer, `[row]`, for output rows that belong to these samples."""

    def right(self, output: Any, index: Tensor) -> Tensor | None:
        """Whether the most probable answer is right, bool `[row]` on the CPU; None where there are no answers."""

    def says(self, output: Any) -> list[list[tuple[str, float]]]:
        """For each row the three answers that the model holds most probable."""

    def show(self, sample: int) -> Any:
        """The sample as the pages take it."""

    def place(self, values: Tensor, sample: int) -> Any:
        """Where in the sample a unit is active, from its values `[position]`, as the pages take it."""


def fed(model: nn.Module, matter: Matter, index: Tensor) -> Any:
    """The model's input for these samples, where the first parameter of the model lies."""
    batch, first = matter.batch(index), next(model.parameters(), None)
    return batch if first is None or first.is_meta else _moved(batch, first.device)


class Images:
    """Images and their classes, for a classifier that gives logits.

    Args:
        images: `[sample, channel, y, x]`, in [0, 1] for showing; one channel is grey, three are red, green, blue.
        labels: class of each, `[sample]`.
        names: of the classes (default: their numbers).
        shown: images to show in place of those that the model reads (for inputs that were normalised).

    Raises:
        ShapeError: images of other dimensions, other numbers of labels or names. DtypeError: labels of no integers.

    Examples:
        >>> from plexus import data
        >>> digits = data.digits()
        >>> matter = Images(digits.x[:20], digits.y[:20])
        >>> matter.kind, len(matter.concepts), tuple(matter.batch(torch.tensor([0, 3])).shape)
        ('images', 10, (2, 1, 8, 8))
    """

    kind = "images"
    pool: How = "max"

    def __init__(
        self, images: Tensor, labels: Tensor, names: Sequence[str] | None = None, *, shown: Tensor | None = None
    ) -> None:
        shown = images if shown is None else shown
        if images.dim() != 4 or shown.dim() != 4 or shown.shape[1] not in (1, 3) or len(shown) != len(images):
            raise ShapeError(
                "images are [sample, channel, y, x], and 1 or 3 channels can be shown",
                given=f"{tuple(images.shape)}, shown {tuple(shown.shape)}",
            )
        self.images, self.shown = images, shown
        self.labels = _labels(labels, len(images))
        count = int(self.labels.max()) + 1
        self.concepts = tuple(names) if names is not None else tuple(map(str, range(count)))
        if len(self.concepts) < count:
            raise ShapeError("fewer names than classes", given=len(self.concepts), expected=count)

    def batch(self, index: Tensor) -> Tensor:
        return self.images[index]

    def outcome(self, output: Any, index: Tensor) -> Tensor:
        logits = self._scores(output)
        return logits.log_softmax(1).gather(1, self.labels[index].to(logits.device)[:, None]).squeeze(1)

    def right(self, output: Any, index: Tensor) -> Tensor:
        return self._scores(output).argmax(1).cpu() == self.labels[index]

    def _scores(self, output: Any) -> Tensor:
        logits = _logits(output)
        if logits.dim() != 2 or logits.shape[1] < len(self.concepts):
            raise ShapeError(
                "a classifier of images gives logits [sample, class]",
                given=tuple(logits.shape),
                expected=f"{len(self.concepts)} classes",
            )
        return logits

    def says(self, output: Any) -> list[list[tuple[str, float]]]:
        return _highest(_logits(output), lambda i: self.concepts[i] if i < len(self.concepts) else str(i))

    def show(self, sample: int) -> str:
        """A PNG as a data URI."""
        image = require("PIL.Image", "lab", purpose="the pictures of the atlas")
        pixels = (self.shown[sample].clamp(0, 1) * 255).to(torch.uint8).movedim(0, -1).cpu().numpy()
        file = io.BytesIO()
        image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def place(self, values: Tensor, sample: int) -> list[float] | None:
        """Left, top, width, height of the most active place, as shares of the image; None where no place differs."""
        height, width = self.images.shape[-2:]
        columns = round((len(values) * width / height) ** 0.5)
        if len(values) < 2 or columns < 1 or len(values) % columns or bool((values == values[0]).all()):
            return None
        rows = len(values) // columns
        row, column = divmod(int(values.argmax()), columns)
        return [column / columns, row / rows, 1 / columns, 1 / rows]


class Texts:
    """Prompts and their answers, for a causal language model of Hugging Face; or texts without answers.

    With answers the outcome is the log-probability of the answer's first token after the prompt, and a unit's response
    is its value at the last token. Without them the outcome is the mean log-probability of the text's own tokens, and
    the response is the largest value at any token.

    Args:
        tokenizer: of Hugging Face, with a padding token.
        texts: the prompts.
        labels: concept of each, as names.
        answers: what comes next, one per prompt.
        length: tokens kept of each text, the last ones.

    Raises:
        ShapeError: other numbers of labels or answers, or no texts. RangeError: the tokenizer has no padding token.
    """

    kind = "texts"

    def __init__(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        labels: Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        length: int = 64,
    ) -> None:
        if not texts or len(labels) != len(texts) or (answers is not None and len(answers) != len(texts)):
            raise ShapeError(
                "each text needs its label, and its answer where there are answers",
                given=f"{len(texts)} texts, {len(labels)} labels, {'no' if answers is None else len(answers)} answers",
            )
        if tokenizer.pad_token_id is None:
            raise RangeError(
                "the tokenizer has no padding token", mend="tokenizer.pad_token = tokenizer.eos_token gives it one"
            )
        self.tokenizer, self.answers = tokenizer, answers
        self.concepts = tuple(dict.fromkeys(labels))
        self.labels = torch.tensor([self.concepts.index(label) for label in labels])
        self.pool: How = "max" if answers is None else "last"
        self.tokens = [tokenizer(text)["input_ids"][-length:] for text in texts]
        if answers is not None:
            # the token that follows the prompt, however the tokenizer joins the two
            self.first = torch.tensor(
                [_after(tokenizer, text, answer) for text, answer in zip(texts, answers, strict=True)]
            )

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        chosen = [self.tokens[i] for i in index.tolist()]
        return padded(chosen, int(self.tokenizer.pad_token_id), "left")

    def outcome(self, output: Any, index: Tensor) -> Tensor:
        logits = _logits(output)
        if self.answers is not None:
            scores = logits[:, -1].float().log_softmax(-1)
            return scores.gather(1, self.first[index].to(scores.device)[:, None]).squeeze(1)
        scores = logits.float().log_softmax(-1)
        batch = self.batch(index)
        targets, real = batch["input_ids"][:, 1:].to(scores.device), batch["attention_mask"][:, :-1].to(scores.device)
        each = scores[:, :-1].gather(2, targets[..., None]).squeeze(2) * real
        return each.sum(1) / real.sum(1).clamp(min=1)

    def right(self, output: Any, index: Tensor) -> Tensor | None:
        return None if self.answers is None else _logits(output)[:, -1].argmax(-1).cpu() == self.first[index]

    def says(self, output: Any) -> list[list[tuple[str, float]]]:
        return _highest(_logits(output)[:, -1], lambda i: str(self.tokenizer.decode([i])))

    def show(self, sample: int) -> dict[str, Any]:
        """The tokens and the answer."""
        words = [self.tokenizer.decode([token]) for token in self.tokens[sample]]
        return {"tokens": words, "answer": None if self.answers is None else self.answers[sample]}

    def place(self, values: Tensor, sample: int) -> list[float]:
        """The value at each token."""
        return [float(f"{value:.3g}") for value in values.tolist()]


def _after(tokenizer: Any, text: str, answer: str) -> int:
    alone = tokenizer(text)["input_ids"]
    together = tokenizer(f"{text} {answer}", add_special_tokens=True)["input_ids"]
    if together[: len(alone)] == alone and len(together) > len(alone):
        return int(together[len(alone)])
    return int(tokenizer(answer, add_special_tokens=False)["input_ids"][0])


def _logits(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    if isinstance(found, tuple | list):
        found = found[0]
    if not isinstance(found, Tensor):
        raise DtypeError("the model gives no logits", given=type(output).__name__)
    return found


def _highest(logits: Tensor, name: Any) -> list[list[tuple[str, float]]]:
    chance, index = (part.cpu() for part in logits.float().softmax(-1).topk(min(3, logits.shape[-1])))
    return [
        [(name(int(i)), round(float(p), 4)) for i, p in zip(row_i, row_p, strict=True)]
        for row_i, row_p in zip(index, chance, strict=True)
    ]


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_moved(value, device) for value in batch)
    return batch


def _labels(labels: Tensor, samples: int) -> Tensor:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DtypeError("classes are integers", given=str(labels.dtype))
    if labels.shape != (samples,) or not samples:
        raise ShapeError("each image needs its class", given=tuple(labels.shape), expected=(samples,))
    return labels.to(torch.int64).cpu()
