"""One verbosity knob: the environment variable ``FA3GEN_DEBUG``.

=====  ==========================  ===================================
level  logged on standard error    level of the records
=====  ==========================  ===================================
1      the scheduler's choices     ``CHOICES``
2      also the rendered source    ``SOURCE``
3      also the IR after each pass ``PASSES``
4      also the compilers' output  ``COMPILER``
=====  ==========================  ===================================

From level 1 the command line shows tracebacks too. Records go to the logger of their package
(``fa3gen.schedule``, ``fa3gen.codegen``, ``fa3gen.jit``), which a program may also handle itself.
"""

from __future__ import annotations

import logging
import os

__all__ = ["CHOICES", "COMPILER", "PASSES", "SOURCE", "debug_level", "set_up"]

CHOICES, SOURCE, PASSES, COMPILER = 20, 15, 10, 5  # 20 is logging.INFO, 10 logging.DEBUG

_LEVELS = (CHOICES, SOURCE, PASSES, COMPILER)


def debug_level() -> int:
    """``FA3GEN_DEBUG`` as a number from 0 to 4; any other text than a number counts as 1."""
    text = os.environ.get("FA3GEN_DEBUG", "").strip()
    if not text:
        return 0
    return min(int(text), 4) if text.isdecimal() else 1


def set_up() -> None:
    """Sends fa3gen's records to standard error, as ``FA3GEN_DEBUG`` asks; once is enough."""
    level = debug_level()
    logger = logging.getLogger("fa3gen")
    if not level or logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[level - 1])
    logger.propagate = False
