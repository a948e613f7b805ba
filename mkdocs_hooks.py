"""Turns the line `::: plexus.room` of an API page into one entry per public name of the room and of its sub-rooms.

The names are those of the room's `__init__.pyi`, its public face; the implementation they come from stays out of sight.
"""

import ast
import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent / "plexus"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"^::: plexus\.(\w+)$", lambda match: room(match[1]), markdown, flags=re.M)


def room(path: str) -> str:
    """The entries of a room, sub-rooms last, each under its own heading."""
    folder = PACKAGE / path.replace(".", "/")
    if not folder.is_dir():
        return f"::: plexus.{path}\n"
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    names, rooms = [], []
    for node in ast.parse((folder / "__init__.pyi").read_text()).body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            if node.module is None:
                rooms.append(alias.name)
            else:
                names.append(f"::: plexus.{path}.{alias.name}\n    options: {{heading_level: 3}}\n")
    parts = [text, *sorted(names, key=lambda entry: entry.split("\n")[0].rpartition(".")[2].lower())]
    for name in rooms:
        if (folder / name).is_dir():
            parts += [f"## plexus.{path}.{name}\n", room(f"{path}.{name}")]
    return "\n\n".join(parts)
