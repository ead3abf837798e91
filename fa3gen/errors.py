"""What can go wrong, one class per stage of the compiler.

::

    Fa3genError
    ├── UserError                the request is at fault; the message says what to change
    │   ├── SpecError            a spec breaks a rule (file, line, key, rule, value, remedy)
    │   ├── ScheduleError        the schedule asked for does not fit the machine
    │   ├── UnsupportedError     well formed, but this release cannot compile it
    │   ├── InputError           a call's tensors break a rule
    │   └── ToolchainError       no usable compiler, headers or GPU
    ├── CompilerError            fa3gen is at fault: please report
    │   ├── GraphError           an op graph or Program is malformed
    │   ├── VerificationError    a Program is not free of races and deadlocks
    │   └── RenderError          a template and its view do not match
    └── BuildError               the CUDA or C++ compiler failed, or a build gate did
        └── PressureError        a kernel takes more registers than its tile leaves
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "CompilerError",
    "Fa3genError",
    "GraphError",
    "InputError",
    "PressureError",
    "RenderError",
    "ScheduleError",
    "SpecError",
    "ToolchainError",
    "UnsupportedError",
    "UserError",
    "VerificationError",
]


class Fa3genError(Exception):
    """Base of every error that fa3gen raises on purpose."""


class UserError(Fa3genError):
    """The request is at fault."""


class SpecError(UserError, ValueError):
    """A spec breaks a rule.

    Attributes name the place and the cure: ``file``, ``line`` (1-based), ``key`` (dotted path),
    ``rule``, ``value`` and ``remedy``; each but ``rule`` may be None.
    """

    def __init__(
        self,
        rule: str,
        *,
        key: str | None = None,
        value: object | None = None,
        remedy: str | None = None,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        self.rule, self.key, self.value = rule, key, value
        self.remedy, self.file, self.line = remedy, file, line
        super().__init__(self._message())

    def _message(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        text = f"{place}: " if place else ""
        text += f"{_shortened(self.key)}: " if self.key else ""
        text += self.rule
        if self.value is not None:
            text += f" (got {self.value!r})"
        if self.remedy:
            text += f"; {self.remedy}"
        return _printable(text)

    def at(self, file: str | None, line: int | None) -> SpecError:
        """The same error with its place filled in."""
        return SpecError(
            self.rule,
            key=self.key,
            value=self.value,
            remedy=self.remedy,
            file=self.file or file,
            line=self.line or line,
        )


def _shortened(key: str) -> str:
    return key if len(key) <= 100 else key[:97] + "..."


def _printable(text: str) -> str:
    """The text with escapes for what would steer a terminal or hide in it."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class ScheduleError(UserError, ValueError):
    """The schedule asked for does not fit the machine."""


class UnsupportedError(UserError, NotImplementedError):
    """A well-formed request that this release cannot compile."""


class InputError(UserError, ValueError):
    """A call's tensors break a rule: the message names argument, rule and value."""


class ToolchainError(UserError, RuntimeError):
    """No usable compiler, headers or GPU."""


class CompilerError(Fa3genError):
    """fa3gen is at fault."""


class GraphError(CompilerError):
    """An op graph or a Program is malformed; the message names the pass that should have run."""


class VerificationError(CompilerError):
    """A Program is not free of races and deadlocks."""


class RenderError(CompilerError):
    """A template and its view do not match."""


class BuildError(Fa3genError, RuntimeError):
    """The CUDA or C++ compiler failed, or a build gate did."""


class PressureError(BuildError):
    """A kernel takes more registers than its tile leaves: a smaller tile may be built."""
