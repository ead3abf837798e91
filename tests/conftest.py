"""Fixtures of several test folders: the stand-in kernel, built once a session, and one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from standin import host_with_inputs, standin_source

from fa3gen.codegen.source import OpSource
from fa3gen.errors import ToolchainError
from fa3gen.runtime.artifact import Artifact


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiles are small: threads gain nothing, and lose much where other tests run beside."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def standin_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The stand-in kernel; ``FA3GEN_STANDIN`` names one built elsewhere."""
    if built := os.environ.get("FA3GEN_STANDIN"):
        return Artifact.read(built)
    return _built(standin_source(), tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="session")
def inputs_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The stand-in kernel under a host side that takes two inputs; it is not to be launched."""
    return _built(standin_source(host_with_inputs()), tmp_path_factory.mktemp("inputs"))


def _built(source: OpSource, folder: Path) -> Artifact:
    from fa3gen.jit.compiler import build
    from fa3gen.jit.toolchain import find_toolchain

    try:
        toolchain = find_toolchain()
    except ToolchainError as error:
        pytest.skip(str(error))
    return build(source, folder, toolchain)
