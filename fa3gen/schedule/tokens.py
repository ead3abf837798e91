"""Values of the verifier: tokens that say what a tile holds, instead of numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from fa3gen.errors import VerificationError
from fa3gen.schedule.machine import Place
from fa3gen.schedule.program import Calc, CalcKind, Gemm, GemmKind, Program
from fa3gen.schedule.ranges import TileRange

__all__ = ["Tokens"]


@dataclass(frozen=True)
class _Token:
    """A symbolic value: ``kind`` of work tile ``work``, KV tile or count ``tile``, ``scaled`` to
    the row maximum over that many KV tiles."""

    kind: str
    work: int
    tile: int = 0
    scaled: int = 0
    biased: bool = False  # S has its bias, has gone through the formula, and the mask
    scored: bool = False
    masked: bool = False
    shifted: int = 0  # keys of S from which the shift is subtracted, and those raised to 2^S
    raised: int = 0


_POISON = _Token("poison", -1)


class Tokens:
    """The Domain that proves values: each operation demands exactly the tokens it is meant for.

    A lazy maximum may grow with every part of a tile. Its tokens count the keys seen: those of the
    shift and of alpha as their tile, that of the row sum as what it is scaled to.
    """

    def __init__(self, program: Program) -> None:
        self.block_n = program.block_n
        self.formula, self.bias = not program.score.plain, program.bias is not None
        self.stored: dict[tuple[str, int, int], int] = {}

    def poison(self) -> Any:
        """The token that no operation accepts."""
        return _POISON

    def load(self, buffer: str, place: Place) -> Any:
        """Q of the work tile; K, V or bias of the KV tile."""
        return _Token(buffer, place.work, 0 if buffer == "Q" else place.tile)

    def slab(self, value: Any, instance: int) -> Any:
        """Rows are not told apart: byte ranges are the monitor's."""
        return value

    def gemm(self, gemm: Gemm, operands: tuple[Any, Any], accumulator: Any, place: Place) -> Any:
        """S of a KV tile, or O with one more tile in it."""
        a, b = operands
        if gemm.kind is GemmKind.QK:
            _demand(a, "Q", place)
            _demand(b, "K", place, tile=place.tile)
            biased, scored = not self.bias, not self.formula
            return _Token("S", place.work, place.tile, biased=biased, scored=scored)
        _demand(a, "P", place, tile=place.tile)
        _demand(b, "V", place, tile=place.tile)
        _demand(accumulator, "O", place, tile=place.tile)
        if accumulator.tile and accumulator.scaled != a.scaled:
            raise VerificationError(
                f"O is scaled to the maximum of {accumulator.scaled} tiles, P to that of {a.scaled}"
            )
        return _Token("O", place.work, accumulator.tile + 1, a.scaled)

    def calc(self, calc: Calc, registers: dict[str, Any], place: Place) -> dict[str, Any]:
        """Symbolic softmax: counts of tiles stand for maxima and sums."""
        work = place.work
        match calc.kind:
            case CalcKind.SHIFT | CalcKind.EXP2:
                if calc.keys is None:
                    raise VerificationError(f"{calc.kind.name} of no keys")
                shifts = calc.kind is CalcKind.SHIFT
                return (self._shift if shifts else self._raise)(calc.keys, registers, place)
            case CalcKind.CLEAR_SHIFTED:
                return {name: _Token(name, work) for name in ("O", "shift", "row_sum")}
            case CalcKind.ADD_SUM:
                e = _demand(_score(registers)[1], "E", place, tile=place.tile)
                row_sum = _demand(registers["row_sum"], "row_sum", place, tile=e.tile)
                _demand_scaled(row_sum, (e.tile + 1) * self.block_n)
                return {"row_sum": replace(row_sum, tile=e.tile + 1)}
            case CalcKind.RESCALE_GROWN:
                seen = (place.tile + 1) * self.block_n
                alpha = _demand(registers["alpha"], "alpha", place, tile=seen)
                _demand_scaled(alpha, seen - self.block_n)
                return {"O": _rescaled(registers["O"], place.tile + 1, place)}
            case CalcKind.NORMALIZE_SHIFTED:
                count = place.range.tiles
                row_sum = _demand(registers["row_sum"], "row_sum", place, tile=count)
                _demand_scaled(row_sum, count * self.block_n)
                _demand(registers["shift"], "shift", place, tile=count * self.block_n)
                return self._normalize(registers["O"], place)
            case CalcKind.CLEAR:
                return {
                    "O": _Token("O", work),
                    "row_max": _Token("row_max", work),
                    "row_sum": _Token("row_sum", work),
                }
            case CalcKind.ROWS:
                return {"rows": _Token("rows", work)}
            case CalcKind.BIAS:
                (name, s) = _score(registers)
                s = _demand(s, "S", place, tile=place.tile)
                self._check_bias(registers, place)
                if s.biased:
                    raise VerificationError("adds a bias to scores that have theirs")
                return {name: replace(s, biased=True)}
            case CalcKind.SCORE:
                (name, s) = _score(registers)
                s = _demand(s, "S", place, tile=place.tile)
                _check_rows(registers, place)
                _check_raw(s)
                return {name: replace(s, scored=True)}
            case CalcKind.MASK:
                _check_rows(registers, place)
                (name, s) = _score(registers)
                s = _demand(s, "S", place, tile=place.tile)
                if not (s.scored and s.biased):
                    raise VerificationError("masks scores before their formula, which may undo it")
                return {name: replace(s, masked=True)}
            case CalcKind.ROW_MAX:
                s = _demand(_score(registers)[1], "S", place, tile=place.tile)
                _check_masked(s, place)
                _demand(registers["row_max"], "row_max", place, tile=s.tile)
                count = s.tile + 1
                return {
                    "row_max": _Token("row_max", work, count),
                    "alpha": _Token("alpha", work, count),
                }
            case CalcKind.EXP:
                (name, s) = _score(registers)
                s = _demand(s, "S", place, tile=place.tile)
                _demand(registers["row_max"], "row_max", place, tile=s.tile + 1)
                return {name: _Token("E", work, s.tile, s.tile + 1)}
            case CalcKind.ROW_SUM:
                e = _demand(_score(registers)[1], "E", place, tile=place.tile)
                _demand(registers["row_sum"], "row_sum", place, tile=e.tile)
                _demand(registers["alpha"], "alpha", place, tile=e.scaled)
                return {"row_sum": _Token("row_sum", work, e.tile + 1)}
            case CalcKind.SPECULATE | CalcKind.SPECULATE_SCORE:
                name, s = _score(registers)
                s = _demand(s, "S", place, tile=place.tile)
                if calc.kind is CalcKind.SPECULATE_SCORE:
                    _check_rows(registers, place)
                    _check_raw(s)
                    s = replace(s, scored=True)
                guesses = self._speculate(name, s, registers, place)
                return {name: guesses[name] for name in calc.writes}
            case CalcKind.REDO:
                return self._redo(registers, place)
            case CalcKind.CONVERT if _score(registers)[1].kind == "guess":
                return {"P": _demand(_score(registers)[1], "guess", place, tile=place.tile)}
            case CalcKind.CONVERT:
                e = _demand(_score(registers)[1], "E", place, tile=place.tile)
                return {"P": _Token("P", work, e.tile, e.scaled)}
            case CalcKind.RESCALE:
                alpha = _demand(registers["alpha"], "alpha", place, tile=place.tile + 1)
                return {"O": _rescaled(registers["O"], alpha.tile, place)}
            case CalcKind.NORMALIZE:
                count = place.range.tiles
                _demand(registers["row_sum"], "row_sum", place, tile=count)
                _demand(registers["row_max"], "row_max", place, tile=count)
                return self._normalize(registers["O"], place)

    def _check_bias(self, registers: dict[str, Any], place: Place) -> None:
        _demand(registers.get("Bias"), "Bias", place, tile=place.tile)

    def _shift(
        self, keys: tuple[int, int], registers: dict[str, Any], place: Place
    ) -> dict[str, Any]:
        """A part's scores against the shift, which grows; what was raised before grows with it."""
        name, s = _score(registers)
        s = _demand(s, "S", place, tile=place.tile)
        begin, end = keys
        if not s.shifted == s.raised == begin < end <= self.block_n:
            raise VerificationError(
                f"shifts keys {begin} to {end} of S, of which {s.shifted} are shifted and "
                f"{s.raised} raised"
            )
        _check_masked(s, place)
        tile = s.tile * self.block_n  # keys seen before it
        _demand(registers["shift"], "shift", place, tile=tile + begin)
        row_sum = _demand(registers["row_sum"], "row_sum", place, tile=s.tile)
        _demand_scaled(row_sum, tile + begin)
        if begin:
            _demand_scaled(_demand(registers["alpha"], "alpha", place, tile=tile + begin), tile)
        return {
            name: replace(s, shifted=end),
            "shift": _Token("shift", place.work, tile + end),
            "row_sum": replace(row_sum, scaled=tile + end),
            "alpha": _Token("alpha", place.work, tile + end, tile),
        }

    def _raise(
        self, keys: tuple[int, int], registers: dict[str, Any], place: Place
    ) -> dict[str, Any]:
        """2^S of a part that was shifted."""
        name, s = _score(registers)
        s = _demand(s, "S", place, tile=place.tile)
        begin, end = keys
        if not s.raised == begin < end <= s.shifted:
            raise VerificationError(
                f"raises keys {begin} to {end} of S, of which {s.shifted} are shifted and "
                f"{s.raised} raised"
            )
        if end < self.block_n:
            return {name: replace(s, raised=end)}
        return {name: _Token("E", place.work, s.tile, s.tile + 1)}

    def _speculate(
        self, name: str, s: _Token, registers: dict[str, Any], place: Place
    ) -> dict[str, Any]:
        """Powers of 2 over the maxima of the tiles before. What is done again if they are wrong
        knows no mask, so that the tile must need none."""
        if s.masked:
            raise VerificationError("speculates on a masked tile, which cannot be done again")
        _check_masked(s, place)
        _demand(registers["row_max"], "row_max", place, tile=s.tile)
        guess = _Token("guess", place.work, s.tile)
        return {name: guess, "P": guess, "tile_sum": guess}

    def _redo(self, registers: dict[str, Any], place: Place) -> dict[str, Any]:
        """The tile's maxima, sums and P, whether the guess was right or not; O with them."""
        _check_rows(registers, place)
        if self.bias:
            self._check_bias(registers, place)
        name, guess = _score(registers)
        tile = _demand(guess, "guess", place, tile=place.tile).tile
        for other in ("P", "tile_sum"):
            _demand(registers[other], "guess", place, tile=tile)
        for statistic in ("row_max", "row_sum"):
            _demand(registers[statistic], statistic, place, tile=tile)
        count = tile + 1
        return {
            name: _Token("E", place.work, tile, count),
            "P": _Token("P", place.work, tile, count),
            "row_max": _Token("row_max", place.work, count),
            "row_sum": _Token("row_sum", place.work, count),
            "O": _rescaled(registers["O"], count, place),
        }

    def _normalize(self, o: Any, place: Place) -> dict[str, Any]:
        """O of every tile, scaled to the maximum of them all, becomes the result."""
        count = place.range.tiles
        o = _demand(o, "O", place, tile=count)
        if count and o.scaled != count:
            raise VerificationError(f"O is scaled to {o.scaled} of {count} tiles")
        return {"O": _Token("result", place.work), "lse": _Token("lse", place.work)}

    def stage(self, buffer: str, value: Any, place: Place) -> Any:
        """The finished O, or P of the KV tile."""
        if buffer == "P":
            e = _demand(value, "E", place, tile=place.tile)
            return _Token("P", place.work, e.tile, e.scaled)
        return _demand(value, "result", place)

    def store(self, tile: str, value: Any, place: Place) -> None:
        """Count what leaves."""
        _demand(value, "result" if tile == "O" else tile, place)
        key = (tile, place.work, place.instance)
        self.stored[key] = self.stored.get(key, 0) + 1

    def check(self, work: tuple[TileRange, ...], instances: int) -> None:
        """Every consumer stored O and LSE of every work tile once."""
        for tile, index, instance in itertools.product(
            ("O", "lse"), range(len(work)), range(instances)
        ):
            times = self.stored.get((tile, index, instance), 0)
            if times != 1:
                raise VerificationError(
                    f"consumer {instance} stores {tile} of work tile {index} {times} times"
                )


def _score(registers: dict[str, Any]) -> tuple[str, Any]:
    """The register tile of scores among a computation's operands: S, or one of two."""
    return next((name, value) for name, value in registers.items() if name.startswith("S"))


def _demand(token: Any, kind: str, place: Place, tile: int | None = None) -> _Token:
    """The token, if it is the one wanted."""
    if not isinstance(token, _Token) or token == _POISON:
        raise VerificationError(f"uses {kind} that is not there (never written, or in flight)")
    wanted = (kind, place.work, token.tile if tile is None else tile)
    if (token.kind, token.work, token.tile) != wanted:
        raise VerificationError(
            f"wants {kind} of work {place.work}, tile {wanted[2]}; "
            f"finds {token.kind} of work {token.work}, tile {token.tile}"
        )
    return token


def _demand_scaled(token: _Token, scaled: int) -> None:
    if token.scaled != scaled:
        raise VerificationError(
            f"wants {token.kind} scaled to {scaled} keys, finds it scaled to {token.scaled}"
        )


def _rescaled(o: Any, tiles: int, place: Place) -> _Token:
    """O scaled to the maximum of so many tiles instead of one less."""
    o = _demand(o, "O", place)
    if o.tile and o.scaled != tiles - 1:
        raise VerificationError(f"rescales O from {o.scaled} tiles to {tiles}")
    return _Token("O", place.work, o.tile, tiles)


def _check_rows(registers: dict[str, Any], place: Place) -> None:
    """What is kept of rows, where it is read, must be of this work tile."""
    if "rows" in registers:
        _demand(registers["rows"], "rows", place)


def _check_raw(s: _Token) -> None:
    if s.scored or not s.biased:
        raise VerificationError("takes the formula of scores that lack a bias or have had it")


def _check_masked(s: _Token, place: Place) -> None:
    """Scores must have gone through their formula, and outside the full tiles been masked."""
    if not (s.scored and s.biased):
        raise VerificationError("the scores have not gone through their formula")
    index = place.range.end - 1 - s.tile
    if not s.masked and not place.range.full_begin <= index < place.range.full_end:
        raise VerificationError(f"KV tile {index} needs the mask and has none")
