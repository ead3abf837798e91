"""Files of other users, whoever runs the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

STRANGER = 54321


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a file another user's: indeed, if root runs the tests, else as far as lstat tells."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    else:
        pretend(path, monkeypatch, uid=STRANGER)


def pretend(path: Path, monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    """Makes lstat tell another ``uid``, ``gid`` or ``mode`` (its permissions) of a file."""
    real = os.lstat

    def lstat(asked: Any, **options: Any) -> os.stat_result:
        status = real(asked, **options)
        if Path(asked) != path:
            return status
        fields = list(status)
        fields[0] = fields[0] & ~0o7777 | changes.get("mode", fields[0] & 0o7777)
        fields[4], fields[5] = changes.get("uid", fields[4]), changes.get("gid", fields[5])
        return os.stat_result(fields)

    monkeypatch.setattr(os, "lstat", lstat)
