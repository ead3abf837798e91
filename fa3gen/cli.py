"""The command line; its commands are in ``fa3gen.commands``.

Exit codes: 0, 1 (a check failed, or what was asked for cannot be had), 2 (bad use). An error is one
message; set ``FA3GEN_DEBUG`` for the traceback.
"""

from __future__ import annotations

import sys
import traceback
import warnings

from fa3gen import debug
from fa3gen.commands import inspection, judging, machine, making  # noqa: F401  (they register)
from fa3gen.commands.app import app
from fa3gen.errors import CompilerError, Fa3genError

__all__ = ["app", "main"]


def _fail(message: str) -> None:
    if debug.debug_level():
        traceback.print_exc()
    print(f"fa3gen: {message}", file=sys.stderr)
    sys.exit(1)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"fa3gen: warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; an error is one message and exit code 1."""
    debug.set_up()
    warnings.showwarning = _show_warning
    try:
        app()
    except CompilerError as error:
        _fail(f"{type(error).__name__}, a fault of fa3gen's; please report it: {error}")
    except (Fa3genError, OSError) as error:
        _fail(str(error))
    except Exception as error:
        _fail(
            f"{type(error).__name__}, a fault of fa3gen's; please report it with the traceback, "
            f"which FA3GEN_DEBUG=1 shows: {error}"
        )


if __name__ == "__main__":
    main()
