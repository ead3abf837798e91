"""Specs from files, YAML text and mappings, with the line of what is wrong."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fa3gen import paths
from fa3gen.errors import SpecError
from fa3gen.spec.model import AttentionSpec

__all__ = ["load_spec"]

_MAX_BYTES = 64 * 1024
_MAX_DEPTH = 16
_TEXT = "<text>"  # the file's name in errors of YAML text


def load_spec(source: str | os.PathLike[str] | Mapping[str, Any] | AttentionSpec) -> AttentionSpec:
    """The spec in a YAML file, a YAML text, a mapping, or the record itself.

    A str is a path if it ends in .yaml or .yml, names a file, or has neither a line break nor a
    colon followed by a space; the bare name of a shipped spec is a path too. Raises SpecError,
    which names file, line, key, rule, value and remedy.
    """
    match source:
        case AttentionSpec():
            return source
        case Mapping():
            if unnamed := [key for key in source if not isinstance(key, str)]:
                raise SpecError("keys are text", value=unnamed[0])
            return AttentionSpec(**source)
        case str() if not _is_path(source):
            return _from_text(source.encode("utf-8", "surrogatepass"), _TEXT)
        case str() | os.PathLike():
            path = _find(os.fspath(source))
            return _from_text(_read(path), str(path))
    raise SpecError(
        "a spec is a path, YAML text, a mapping or an AttentionSpec", value=type(source).__name__
    )


def _is_path(source: str) -> bool:
    if re.search(r"[\r\n]", source):
        return False
    return source.endswith((".yaml", ".yml")) or ": " not in source or os.path.exists(source)


def _find(source: str) -> Path:
    """A path's file, or the shipped spec of that name."""
    shipped = {path.stem: path for path in sorted(paths.SPECS.glob("*.yaml"))}
    if source in shipped and not os.path.isfile(source):
        return shipped[source]
    return Path(source)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        shipped = sorted(spec.stem for spec in paths.SPECS.glob("*.yaml"))
        close = difflib.get_close_matches(path.stem, shipped, 1)
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(
            f"no spec can be read there: {reason}",
            value=str(path)[:200],
            remedy=f"did you mean {close[0]}?" if close else None,
        ) from None


def _from_text(data: bytes, file: str) -> AttentionSpec:
    if len(data) > _MAX_BYTES:
        raise SpecError(f"a spec has at most {_MAX_BYTES // 1024} KiB", file=file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError("a spec is UTF-8 text", file=file, line=line) from None
    document = _parse(text, file)
    try:
        return AttentionSpec(**document.content)
    except SpecError as error:
        raise error.at(file, document.line_of(error.key)) from None


@dataclass
class _Document:
    """A YAML document's content, and the line of each dotted key."""

    content: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def line_of(self, key: str | None) -> int | None:
        """The line of a key, or of the nearest key around it."""
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key.rpartition(".")[0]
        return self.lines.get("")


class _Loader(yaml.SafeLoader):
    """Refuses deep nesting, anchors and aliases (they allow exponential documents)."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refusal("anchors and aliases are not part of a spec", event.start_mark)
        if self.depth >= _MAX_DEPTH:
            raise _refusal(f"a spec nests at most {_MAX_DEPTH} deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refusal(rule: str, mark: Any) -> SpecError:
    return SpecError(rule, line=mark.line + 1 if mark else None, remedy="write the value out")


def _parse(text: str, file: str) -> _Document:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise SpecError("a spec is a mapping of keys to values", line=1)
            document = _Document({})
            document.content = _content(loader, root, "", document.lines)
            return document
        finally:
            loader.dispose()
    except SpecError as error:
        raise error.at(file, None) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        rule = f"not YAML: {error.problem or error.context}"
        raise SpecError(rule, file=file, line=mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"not YAML: {error.reason}", file=file, line=line) from None


def _content(loader: _Loader, node: yaml.Node, key: str, lines: dict[str, int]) -> Any:
    """A node as Python data; fills in ``lines``."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, key, lines)
    if isinstance(node, yaml.SequenceNode):
        return [
            _content(loader, item, f"{key}.{index}", lines) for index, item in enumerate(node.value)
        ]
    return _scalar(loader, node, key)


def _mapping(
    loader: _Loader, node: yaml.MappingNode, key: str, lines: dict[str, int]
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode):
            raise SpecError("keys are text", key=key or None, line=line)
        name = name_node.value
        inner = f"{key}.{name}" if key else name
        if name in content:
            rule = f"the key is there twice, first in line {lines[inner]}"
            raise SpecError(rule, key=inner, line=line, remedy="leave out one of them")
        lines[inner] = line
        content[name] = _content(loader, value_node, inner, lines)
    return content


def _scalar(loader: _Loader, node: yaml.Node, key: str) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    line = node.start_mark.line + 1
    if kind not in ("bool", "float", "int", "null", "str"):
        raise SpecError(f"values are text, numbers and booleans, not {kind}", key=key, line=line)
    try:
        return loader.construct_object(node)
    except (ArithmeticError, KeyError, ValueError):
        raise SpecError(f"not a value of type {kind}", key=key, line=line) from None
