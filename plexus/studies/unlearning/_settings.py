"""Settings of the study: the configuration, what each arm may be tuned over, and what tuning chose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

REQUESTS = ("class", "subclass", "random", "document")
NULLS = ("random", "random-layer", "shuffled")


@dataclass(frozen=True)
class Config:
    """All settings. `setting_<request>` picks from the arm's grid."""

    data: Literal["digits", "mnist"] = "digits"
    train: int | None = None
    test: int = 2000
    text: int | None = None
    copies: int = 10
    epochs: int = 15
    lr: float = 2e-3
    text_epochs: int = 12
    text_lr: float = 5e-3
    batch: int = 64
    random_share: float = 0.03
    shadows: int = 2
    relearn_limit: int = 20
    tuning_seeds: int = 0
    tuning: bool = False
    method: str = "original"
    grid: str = ""
    setting_class: int = 0
    setting_subclass: int = 0
    setting_random: int = 0
    setting_document: int = 0
    method_lr: float = 1e-3
    method_epochs: int = 1
    mode: Literal["sample", "batch"] = "batch"
    auto: Literal["percentile", "budget"] | None = "percentile"
    alpha: float = 10.0
    lam: float = 1.0
    tolerance: float = 0.02

    @property
    def dampens(self) -> bool:
        """Whether the method needs the importances of all training data."""
        return self.method in ("ssd", *NULLS)


GRID: dict[str, list[dict[str, Any]]] = {
    "percentile": [{"lam": lam} for lam in (1.0, 0.7, 0.5, 0.3, 0.1, 0.01)],
    "budget": [{"tolerance": tol, "lam": lam} for tol in (0.01, 0.02, 0.05) for lam in (1.0, 0.1)],
    "fine-tune": [{"method_lr": lr} for lr in (1e-3, 3e-2, 5e-3, 7e-3, 1e-2, 2e-2)],
    "ascent": [
        {"method_lr": lr, "method_epochs": n}
        for lr, n in ((3e-4, 3), (3e-4, 5), (3e-4, 7), (3e-3, 3), (1e-3, 2), (1e-3, 3))
    ],
    "ascent-pass": [{"method_lr": lr} for lr in (5e-4, 1e-3, 2e-3, 2e-2, 5e-3, 1e-2)],
    "ascent-descent": [{"method_lr": lr, "method_epochs": 3} for lr in (3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)],
    "relabel": [{"method_lr": lr} for lr in (3e-4, 7e-4, 1e-3, 1e-2, 2e-3, 5e-3)],
    "bad-teacher": [{"method_lr": lr} for lr in (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)],
    "noise": [{"method_lr": lr} for lr in (5e-4, 1e-3, 2e-3, 2e-2, 5e-3, 1e-2)],
}
"""Six settings for every arm that is tuned; which one serves best is found for each request by itself."""

TUNED: dict[str, tuple[int, int, int, int]] = {
    "percentile": (4, 1, 0, 5),
    "budget": (4, 4, 0, 4),
    "fine-tune": (3, 4, 0, 1),
    "ascent": (2, 1, 0, 3),
    "ascent-pass": (2, 2, 0, 5),
    "ascent-descent": (2, 1, 0, 4),
    "relabel": (2, 1, 2, 3),
    "bad-teacher": (3, 1, 0, 5),
    "noise": (1, 5, 4, 0),
}
"""What `tune` returned for each request on ten tuning seeds at full scale (`--set tuning_seeds=10` tunes again)."""


def tuned(grid: str) -> dict[str, Any]:
    """The overrides of an arm: its grid, and the settings chosen from it."""
    return {"grid": grid, **{f"setting_{name}": index for name, index in zip(REQUESTS, TUNED[grid], strict=True)}}


def for_request(config: Config, name: str) -> Config:
    """The configuration with the setting that the arm takes for one request."""
    return replace(config, **GRID[config.grid][getattr(config, f"setting_{name}")]) if config.grid else config
