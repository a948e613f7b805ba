"""Everything is declared in pyproject.toml; this only puts the ledger, which lies beside the package, in the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithLedger(build_py):
    """Copy `ledger/*.json` into the built package as `plexus/ledger/`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "plexus" / "ledger"
        target.mkdir(parents=True, exist_ok=True)
        for row in Path(__file__).parent.glob("ledger/*.json"):
            shutil.copy(row, target)


setup(cmdclass={"build_py": BuildWithLedger})
