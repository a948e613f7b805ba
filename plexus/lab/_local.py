"""What was measured here: the last run of each study, kept in the store beside its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plexus.lab._catalogue import Entry
from plexus.lab._code import file_hash
from plexus.lab._ledger import KIND, VERSION, Row
from plexus.lab._store import Store
from plexus.lab._verdict import QUESTIONS


def keep_row(store: Store, row: Row) -> None:
    """Remember a run's row as the last one of its study here."""
    store.files.write(f"rows/{row['slug']}.json", json.dumps(row).encode())


def kept_rows(store: Store) -> list[Row]:
    """The last run of each study on this store, by family and slug, without what is damaged or of another version."""
    found = []
    for name in store.files.names("rows"):
        try:
            row = json.loads(store.files.read(f"rows/{name}") or b"")
        except ValueError:
            continue
        if isinstance(row, dict) and (row.get("kind"), row.get("version")) == (KIND, VERSION):
            found.append(row)
    return sorted(found, key=lambda row: (row["family"], row["slug"]))


def state_of(entry: Entry, row: Mapping[str, Any] | None) -> str:
    """`measured`, `broken`, `changed since` (protocol or bars are not those of the ledger's row) or `not measured`."""
    if row is None:
        return "not measured"
    return "changed since" if row.get("study_hash") != file_hash(entry.source.path) else str(row["state"])


def overview(entries: Sequence[Entry], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Every study with its two words and the state of its row, as `plexus list` shows it."""
    shown = []
    for entry in entries:
        row = rows.get(entry.slug)
        facts: dict[str, Any] = {n: getattr(entry, n) for n in ("slug", "family", "title", "claim", "fidelity")}
        words: dict[str, str] = {q: row["verdicts"][q]["word"] if row else "not measured" for q in QUESTIONS}
        shown.append({**facts, **words, "state": state_of(entry, row), "measured": row["measured"] if row else None})
    return shown
