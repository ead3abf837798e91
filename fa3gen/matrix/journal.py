"""Journal: the outcomes so far, a line each, so that a run cut off goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

from fa3gen.matrix.run import Outcome, outcome_from_json

__all__ = ["Journal"]


class Journal:
    """Outcomes in a file, which is begun anew unless ``resume``; half a line is left out."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._known: dict[tuple[str, str], Outcome] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.is_file():
            self._read()
        aside = path.with_name(f"{path.name}.new")
        aside.write_text("".join(map(_line, self._known.values())), encoding="utf-8")
        aside.replace(path)

    def find(self, key: str, identity: str) -> Outcome | None:
        """The outcome of a kernel, if it was judged as it is now and every call was right."""
        found = self._known.get((key, identity))
        return found if found is not None and found.ok else None

    def add(self, outcome: Outcome) -> None:
        """Keeps an outcome."""
        self._known[outcome.key, outcome.identity] = outcome
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(outcome))

    def _read(self) -> None:
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                outcome = outcome_from_json(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
            self._known[outcome.key, outcome.identity] = outcome


def _line(outcome: Outcome) -> str:
    return json.dumps(outcome.to_json()) + "\n"
