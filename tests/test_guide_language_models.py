"""The guide "Tiny language models to test on" runs as it stands, with smaller settings."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "language-models.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLEXUS_CACHE", str(tmp_path))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    code, settings = re.subn(
        r"^entities, steps = \d+, \d+ +# settings: .*$", "entities, steps = 6, 40", "\n".join(blocks), flags=re.M
    )
    assert settings == 1
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(code, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "random sets" in said
    assert "units in common" in said
    assert names["matrix"].change.shape == (8, 8)  # type: ignore[attr-defined]
