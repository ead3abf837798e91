"""Fixtures of several test folders: the stand-in kernel, built once a session."""

from __future__ import annotations

import os

import pytest
from standin import standin_source

from fa3gen.errors import ToolchainError
from fa3gen.runtime.artifact import Artifact


@pytest.fixture(scope="session")
def standin_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The stand-in kernel; ``FA3GEN_STANDIN`` names one built elsewhere."""
    if built := os.environ.get("FA3GEN_STANDIN"):
        return Artifact.read(built)
    from fa3gen.jit.compiler import build
    from fa3gen.jit.toolchain import find_toolchain

    try:
        toolchain = find_toolchain()
    except ToolchainError as error:
        pytest.skip(str(error))
    return build(standin_source(), tmp_path_factory.mktemp("standin"), toolchain)
