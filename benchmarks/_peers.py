"""The peers' process: runs a script in their environment and asks it for one timing at a time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from _timing import note


class Peers:
    """`time(*words)` sends a line of words and gives the JSON object that comes back."""

    def __init__(self, folder: Path, script: str, *arguments: str) -> None:
        python = folder / "bin" / "python"
        self.process: subprocess.Popen[str] | None = None
        if python.exists():
            self.process = subprocess.Popen(
                [python, Path(__file__).with_name(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        else:
            note(f"no peers' environment at {folder}: `make peers` creates it; timing ours alone")

    def time(self, *words: str) -> dict[str, float | str | None]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\t".join(words) + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        return {"error": "the peers' process ended"}

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(timeout=30)
