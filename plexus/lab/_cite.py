"""How to cite a paper, and Plexus, as BibTeX."""

from __future__ import annotations

import re
from typing import Any

from plexus._version import __version__
from plexus.lab._study import Paper


def _escape(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _authors(authors: str) -> str:
    """`A. Author, B. Author and C. Author` as BibTeX wants it: joined by `and`."""
    names = [name.strip() for name in re.split(r",\s*(?:and|&)?\s*|\s+(?:and|&)\s+|;", authors)]
    kept = [re.sub(r"^et al\.?$", "others", re.sub(r"\s+et al\.?$", " and others", name)) for name in names if name]
    return " and ".join(_escape(name) for name in kept)


def _key(paper: Paper) -> str:
    first = re.split(r",| and | et al", paper.authors)[0].split()
    word = next((w for w in re.findall(r"[A-Za-z]+", paper.title) if len(w) > 3), "paper")
    surname = re.sub(r"[^A-Za-z]", "", first[-1]) if first else "anonymous"
    return f"{surname.lower()}{paper.year}{word.lower()}"


def _entry(kind: str, key: str, fields: dict[str, Any]) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return f"@{kind}{{{key},\n{lines}\n}}"


def bibtex(paper: Paper) -> str:
    """A paper as BibTeX.

    Examples:
        >>> print(bibtex(Paper("On Neurons", "A. Author, B. Author", 2020, arxiv="2001.00001")))
        @misc{author2020neurons,
          title = {{On Neurons}},
          author = {A. Author and B. Author},
          year = {2020},
          eprint = {2001.00001},
          archivePrefix = {arXiv}
        }
    """
    fields = {
        "title": "{" + _escape(paper.title) + "}",
        "author": _authors(paper.authors),
        "year": paper.year,
        "howpublished": _escape(paper.venue) if paper.venue else None,
        "eprint": paper.arxiv,
        "archivePrefix": "arXiv" if paper.arxiv else None,
        "doi": paper.doi,
        "url": paper.code,
    }
    return _entry("misc", _key(paper), fields)


def bibtex_plexus() -> str:
    """Plexus itself as BibTeX."""
    title = "{Plexus}: adaptive neurons for {PyTorch}"
    return _entry(
        "software",
        "plexus",
        {"title": title, "author": "{The Plexus developers}", "version": __version__},
    )
