"""The atlas as a folder of pages that opens from disk: one HTML file, its style and script, and data beside them.

Data are scripts (`atlas.put(…)`), because a page opened from disk may load scripts and may not fetch files. The units
of a site are cut into blocks, which the page loads when one of their units is looked at.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plexus.errors import FormatError
from plexus.explain.atlas._band import MATCHED, MOST_BY_CHANCE
from plexus.explain.atlas._build import Atlas, Page

BLOCK = 64  # units per file
MARK = "plexus-atlas.json"


def write(atlas: Atlas, folder: str | os.PathLike[str]) -> Path:
    """Write the pages of an atlas; open `index.html` in the folder.

    Args:
        atlas: what `build` gave.
        folder: where to; made if missing. An atlas that is there already is replaced as a whole.

    Returns:
        The path of `index.html`.

    Raises:
        FormatError: the folder holds something that is no atlas.

    Examples:
        >>> import tempfile
        >>> from torch import nn
        >>> from plexus import data
        >>> from plexus.explain import atlas
        >>> digits = data.digits()[:100]
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
        >>> found = atlas.build(net, atlas.Images(digits.x, digits.y), featured=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(atlas.write(found, folder).name)
        index.html
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / MARK).exists():
        raise FormatError(
            "this folder holds files that are no atlas", given=str(target), mend="name a new folder, or an empty one"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _fill(atlas, whole)
        whole.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        whole.rename(target)
    except BaseException:
        shutil.rmtree(whole, ignore_errors=True)
        raise
    return target / "index.html"


def _fill(atlas: Atlas, folder: Path) -> None:
    templates = resources.files("plexus.explain.atlas") / "templates"
    page = (templates / "index.html").read_text(encoding="utf-8").replace("{{ title }}", html.escape(atlas.title))
    (folder / "index.html").write_text(page, encoding="utf-8")
    for name in ("atlas.css", "atlas.js"):
        (folder / name).write_text((templates / name).read_text(encoding="utf-8"), encoding="utf-8")
    samples: set[int] = set()
    for number, site in enumerate(atlas.pages):
        for start in range(0, len(site.effect), BLOCK):
            units = range(start, min(start + BLOCK, len(site.effect)))
            block = {unit: _unit(site, unit) for unit in units}
            samples.update(e.sample for unit in units for e in site.exemplars[unit])
            samples.update(s for unit in units for s in site.probes.get(unit, ()))
            _put(folder / f"units-{number}-{start // BLOCK}.js", f"{number}/{start // BLOCK}", block)
    _put(folder / "data.js", "front", _front(atlas))
    labels = atlas.matter.labels.tolist()
    shown = {sample: {"concept": labels[sample], "is": atlas.matter.show(sample)} for sample in sorted(samples)}
    _put(folder / "samples.js", "samples", shown)
    (folder / MARK).write_text(json.dumps({"kind": "atlas", "version": 1, "title": atlas.title}))


def _front(atlas: Atlas) -> dict[str, Any]:
    """Everything that the front page draws."""
    names = short_names([page.name or page.site.path for page in atlas.pages])
    return {
        "title": atlas.title,
        "kind": atlas.matter.kind,
        "concepts": list(atlas.matter.concepts),
        "samples": len(atlas.matter.labels),
        "total": atlas.total,
        "accuracy": atlas.accuracy,
        "matched": MATCHED,
        "fewest": round(1 / MOST_BY_CHANCE),
        "block": BLOCK,
        "sites": [
            {
                "name": name,
                "path": str(page.site),
                "units": page.units.tolist(),
                "control": page.control.int().tolist() if len(page.units) < page.size else None,
                "concept": page.concept.tolist(),
                "selectivity": _short(page.selectivity),
                "effect": _short(page.effect),
                "others": _short(page.others),
                "edge": _short(page.edge) if page.tail else None,
                "tail": page.tail,
                "acts": page.acts.int().tolist(),
                "visible": page.visible.int().tolist(),
                "full": sorted(page.doses),
            }
            for name, page in zip(names, atlas.pages, strict=True)
        ],
    }


def short_names(paths: list[str]) -> list[str]:
    """Paths without what all have in common, but for the one part before they differ.

    Examples:
        >>> short_names(["model.layers.0.mlp.down", "model.layers.1.mlp.down"])
        ['layers.0', 'layers.1']
        >>> short_names(["conv", "fc"]), short_names(["net.fc"])
        (['conv', 'fc'], ['net.fc'])
    """
    split = [path.split(".") for path in paths]
    if len(set(paths)) < 2 or len(set(paths)) < len(paths):
        return paths
    head = 0
    while all(len(parts) > head + 1 for parts in split) and len({parts[head] for parts in split}) == 1:
        head += 1
    tail = 0
    while all(len(parts) - tail > head + 1 for parts in split) and len({parts[-1 - tail] for parts in split}) == 1:
        tail += 1
    return [".".join(parts[max(0, head - 1) : len(parts) - tail]) for parts in split]


def _unit(page: Page, unit: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "loss": _short(page.by_concept[:, unit]),
        "answers": None if page.answers is None else [_round(float(values[unit])) for values in page.answers],
        "best": [[e.sample, _round(e.value), e.place] for e in page.exemplars[unit]],
    }
    if unit in page.doses:
        found["probes"] = page.probes[unit]
        found["doses"] = [
            {"x": d.factor, "own": _round(d.own), "others": _round(d.others), "says": d.says, "right": d.right}
            for d in page.doses[unit]
        ]
    return found


def _put(path: Path, name: str, value: Any) -> None:
    # "</" inside a string would end the script element of a page that inlines it
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    path.write_text(f"atlas.put({json.dumps(name)},{body});\n", encoding="utf-8")


def _short(values: Tensor) -> list[float]:
    return [_round(value) for value in torch.nan_to_num(values.double(), nan=0.0, posinf=1e9, neginf=-1e9).tolist()]


def _round(value: float) -> float:
    return float(f"{value:.4g}")
