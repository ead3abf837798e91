"""What pyproject.toml cannot say: templates and specs lie inside the package once it is built."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copies the data folders to where ``fa3gen.paths`` finds them in an installed package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # they are beside the package
        root = Path(__file__).parent
        for name in ("templates", "specs"):
            target = Path(self.build_lib) / "fa3gen/_data" / name
            shutil.copytree(root / name, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildPy})
