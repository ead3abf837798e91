"""Hypothesis strategies of specs from strangers: bytes, YAML, tables of inputs, knobs, formulas."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from fa3gen.paths import SPECS

__all__ = ["expression_texts", "mutated_documents", "specs"]

_SHIPPED = [path.read_bytes() for path in sorted(SPECS.glob("*.yaml"))]

# --- bytes ----------------------------------------------------------------------------------------

_PIECES = [
    *(b"\x00", b"\x1b[31m", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\xc2\x85", b"\r", b"\t"),
    *(b"&a ", b"*a", b"<<: ", b"!!python/name:os.system ", b"!!binary ", b"!", b"%TAG ! tag:x,1:"),
    *(b"---\n", b"...\n", b"? ", b"- ", b"[", b"{", b"}", b"]", b": ", b"|\n", b">-\n", b"#", b"'"),
    *(b"9" * 5000, b"-0", b"0x" + b"f" * 200, b"1e999", b".nan", b".inf", b"1:60", b"2001-01-01"),
    *(b"~", b"null", b"yes", b"[" * 300, b"((((", b"name", b"score", b"inputs", b"schedule: {"),
]


@st.composite
def mutated_documents(draw: st.DrawFn) -> bytes:
    """Bytes of a shipped spec that were flipped, deleted, doubled, spliced or replaced."""
    data = draw(st.sampled_from(_SHIPPED))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(begin + draw(st.integers(0, 40)), len(data))
        piece = data[begin:end]
        change = draw(st.sampled_from(("flip", "delete", "double", "splice", "replace", "number")))
        match change:
            case "flip":
                piece = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in piece[:1])
                end = begin + len(piece)
            case "delete":
                piece = b""
            case "double":
                piece *= draw(st.integers(2, 50))
            case "splice":
                other = draw(st.sampled_from(_SHIPPED))
                start = draw(st.integers(0, len(other)))
                piece = other[start : start + draw(st.integers(0, 200))]
            case "replace":
                piece = draw(st.sampled_from(_PIECES))
            case "number":
                number = draw(_hostile_numbers).encode()
                data = re.sub(rb"\d+", lambda _, number=number: number, data, count=1)
                continue
        data = data[:begin] + piece + data[end:]
    return data


# --- formulas -------------------------------------------------------------------------------------

_hostile_numbers = st.one_of(
    st.integers(-5, 200).map(str),
    st.sampled_from(
        [
            *("2147483647", "2147483648", "-2147483649", "9" * 400, "1" + "0" * 1500, "0x7fffffff"),
            *("1e308", "1e-320", "1e38", "3.5e38", "1.2e-38", "1e-46", "1e999", "1.", ".5", "0.1"),
            *(
                "nan",
                "inf",
                "-inf",
                "NaN",
                "Infinity",
                "1j",
                "0b101",
                "0o7",
                "1_000",
                "00",
                "1e1_0",
            ),
        ]
    ),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
_numbers = st.one_of(
    st.integers(0, 70).map(str),
    st.sampled_from(["1e37", "1e-37", "0.5", "0.1", "2147483647", "65536", "1.5e10", "64", "-64"]),
    _hostile_numbers,
)
_POSITIONS = ("k", "q", "row", "h", "hk", "b", "seqlen_q", "seqlen_k", "(k - q)")

_KINDS = ("integer", "real", "condition")
_Draw = Callable[[Any], Any]


class _Grammar:
    """Draws texts of the language of formulas, now and then of the wrong type; ``tables``: ranks of
    inputs by name, those of integers apart."""

    def __init__(self, draw: _Draw, integers: dict[str, int], reals: dict[str, int]) -> None:
        self.draw, self.integers, self.reals = draw, integers, reals

    def text(self, kind: str, depth: int) -> str:
        """A text of a kind, nested so deep at most."""
        if self.draw(st.integers(0, 39)) == 0:
            kind = self.draw(st.sampled_from(_KINDS))
        form: Callable[[int], str] = getattr(self, f"_{kind}")
        return form(depth - 1) if depth > 0 else self._leaf(kind)

    def _leaf(self, kind: str) -> str:
        if kind == "condition":
            return str(self.draw(st.sampled_from(("causal", "full", "true", "false", "k <= q"))))
        names = ["score", "inf"] if kind == "real" else []
        forms = [st.sampled_from([*_POSITIONS, *names]), _numbers]
        tables = self.integers if kind == "integer" else {**self.integers, **self.reals}
        if scalars := sorted(name for name, rank in tables.items() if rank == 0):
            forms.append(st.sampled_from(scalars))
        return str(self.draw(st.one_of(forms)))

    def _integer(self, depth: int) -> str:
        def inner() -> str:
            return self.text("integer", depth)

        match self.draw(st.integers(0, 8)):
            case 0:
                return f"({inner()} {self.draw(st.sampled_from(('//', '%')))} {inner()})"
            case 1:
                return f"({inner()} ** {self.draw(st.integers(0, 70))})"
            case 2:
                return f"{self.draw(st.sampled_from(('abs', 'floor')))}({inner()})"
            case 3:
                return self._call(("min", "max"), inner)
            case 4:
                return f"where({self.text('condition', depth)}, {inner()}, {inner()})"
            case 5:
                return self._lookup(self.integers, depth)
            case 6:
                return self._leaf("integer")
        return f"({inner()} {self.draw(st.sampled_from('+-*'))} {inner()})"

    def _real(self, depth: int) -> str:
        def inner() -> str:
            return self.text("real", depth)

        match self.draw(st.integers(0, 9)):
            case 0:
                return f"({inner()} {self.draw(st.sampled_from(('//', '%', '**', '/')))} {inner()})"
            case 1:
                exponents = st.sampled_from(("0.5", "-1", "-0.5", "2", "64", "-64", "65", "1e9"))
                return f"({inner()} ** {self.draw(exponents)})"
            case 2 | 3:
                names = ("abs", "exp", "log", "sqrt", "sigmoid", "tanh")
                return f"{self.draw(st.sampled_from(names))}({inner()})"
            case 4:
                return self._call(("min", "max"), inner)
            case 5:
                return f"where({self.text('condition', depth)}, {inner()}, {inner()})"
            case 6:
                return self._lookup({**self.integers, **self.reals}, depth)
            case 7:
                return self.text("integer", depth)
        return f"({inner()} {self.draw(st.sampled_from('+-*/'))} {inner()})"

    def _condition(self, depth: int) -> str:
        def inner() -> str:
            return self.text("condition", depth)

        match self.draw(st.integers(0, 6)):
            case 0:
                return (
                    f"({inner()} {self.draw(st.sampled_from(('&', '|', 'and', 'or')))} {inner()})"
                )
            case 1:
                return f"{self.draw(st.sampled_from(('~', 'not ')))}({inner()})"
            case 2:
                return self._named()
            case 3:
                return f"where({inner()}, {inner()}, {inner()})"
        kind = self.draw(st.sampled_from(("integer", "integer", "real")))
        text = self.text(kind, depth)
        for _ in range(self.draw(st.sampled_from((1, 1, 1, 2, 3)))):
            operator = self.draw(st.sampled_from(("<", "<=", ">", ">=", "==", "!=")))
            text += f" {operator} {self.text(kind, depth)}"
        return f"({text})"

    def _named(self) -> str:
        name, count = self.draw(
            st.sampled_from([("window", 2), ("chunk", 1), ("prefix", 1), ("document", 1)])
        )
        names = [*self.integers, *self.reals, "k"]
        arguments = st.one_of(_numbers, st.sampled_from(sorted(names)))
        return f"{name}({', '.join(self.draw(arguments) for _ in range(count))})"

    def _call(self, names: tuple[str, ...], inner: Callable[[], str]) -> str:
        count = self.draw(st.sampled_from((2, 2, 2, 3, 16)))
        return f"{self.draw(st.sampled_from(names))}({', '.join(inner() for _ in range(count))})"

    def _lookup(self, tables: dict[str, int], depth: int) -> str:
        ranked = sorted(name for name, rank in tables.items() if rank)
        if not ranked:
            return self._leaf("integer")
        name = self.draw(st.sampled_from(ranked))
        indices = [self.text("integer", depth) for _ in range(tables[name])]
        return f"{name}[{', '.join(indices)}]"


_SYNTAX = [
    *"""
    lambda: 0 ; (lambda x: x)(k) ; [k for k in q] ; {k: q} ; {k} ; (k := 1) ; k if q else h
    score.__class__ ; ().__class__.__bases__[0].__subclasses__() ; __import__("os") ; __builtins__
    f"{k}" ; "a" "b" ; b"k" ; *k ; **k ; max(*q) ; max(k, key=q) ; window(left=1) ; window(*k, 1)
    k[::] ; k[1:2] ; k[...] ; slopes[h,] ; slopes[(h)] ; slopes[[h]] ; slopes() ; k() ; 1() ; k.q
    await k ; yield k ; print(k) ; eval(k) ; exec ; True ; None ; nan ; k @ q ; k << 40 ; 1 >> 1
    k is q ; k in q ; not ; k not in q ; ~k ; k ^ q ; 1 << 2 ** 64 ; 9 ** 9 ** 9 ; 2 ** 2 ** 2 ** 64
    """.replace("\n", " ; ").split(" ; "),
    *(
        "\uff4b",
        "\u212a",
        "\uff11",
        "\u0663",
        "k\u200b",
        "\u202ek",
        "k\u0301",
        "s\u00adcore",
        "\x1b[2J",
    ),
    *("k\x00", "k\\\n<= q", "k\n<= q", "k\r<= q", "k\x0c<= q", "k\u2028<= q", "k # q", "k;q", "k$"),
    *("1" + "+1" * 900, "-" * 900 + "1", "(" * 900 + ")" * 900, "k" * 1999, "1+" * 5000 + "1"),
    *(
        "not " * 400 + "causal",
        "causal" + " | causal" * 200,
        "k" + " <= q" * 300,
        "k" + "[0]" * 400,
    ),
]
_TOKENS = ["k", "q", "score", "(", ")", "+", "**", "//", "<=", ",", "0", *_SYNTAX]


def expression_texts() -> st.SearchStrategy[str]:
    """Texts in the alphabet of formulas and in Python's, cut and joined."""
    letters = st.text("kqhbrow0123456789._+-*/%<>=!&|~()[], \n", max_size=60)
    return st.one_of(
        letters,
        st.sampled_from(_SYNTAX),
        st.lists(st.sampled_from(_TOKENS), min_size=2, max_size=6).map(" ".join),
        st.text(max_size=40),
    )


# --- specs ----------------------------------------------------------------------------------------

_AXES = ("b", "h", "hk", "row", "k", 1, 7, 255, 2**31 - 1)
_shapes = st.lists(st.sampled_from(_AXES), max_size=4)
_NAMES = (
    "alpha",
    "r0",
    "w0",
    "doc",
    "lut",
    "params",
    "smem",
    "tSrS",
    "x_",
    "I",
    "S",
    "zoo",
    "nan",
    "beta",
)


@st.composite
def _tables(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    names = draw(st.lists(st.sampled_from(_NAMES), unique=True, max_size=5))
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        shape = draw(st.sampled_from([None, ["h"], ["b", "k"], ["b", "h", "row", "k"], ["h", 255]]))
        shape = draw(_shapes) if draw(st.booleans()) else shape
        dtype = draw(st.sampled_from(("fp32", "bf16", "fp16", "int32", "int32")))
        found[name] = {"dtype": dtype, **({} if shape is None else {"shape": shape})}
    return found


_KNOBS: dict[str, Any] = {
    "tile": st.fixed_dictionaries(
        {},
        optional={
            "m": st.sampled_from((64, 128, 192)),
            "n": st.integers(1, 16).map(lambda n: 16 * n),
        },
    ),
    "warpgroups": st.integers(1, 3),
    "pipeline_depth": st.integers(1, 4),
    "overlap": st.integers(1, 3),
    "pingpong": st.booleans(),
    "p_operand": st.sampled_from(("registers", "shared")),
    "persistent": st.sampled_from((False, "static", "dynamic")),
    "warp_specialized": st.booleans(),
    "o_staging": st.sampled_from(("apart", "over_q", "over_v")),
    "ctas_per_sm": st.integers(1, 2),
    "maxima": st.sampled_from(("exact", "lazy", "speculative")),
}


@st.composite
def specs(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    """Well formed specs but for what the formulas say."""
    tables = draw(_tables())
    ranks = {name: len(one.get("shape", ())) for name, one in tables.items()}
    integers = {name: rank for name, rank in ranks.items() if tables[name]["dtype"] == "int32"}
    reals = {name: rank for name, rank in ranks.items() if name not in integers}
    grammar = _Grammar(draw, integers, reals)
    sizes = st.integers(1, 32).map(lambda n: 8 * n)
    spec: dict[str, Any] = {
        "head_dim": draw(st.one_of(sizes, st.fixed_dictionaries({"qk": sizes, "v": sizes}))),
        "dtype": draw(st.sampled_from(("bf16", "fp16"))),
        "inputs": tables,
    }
    if draw(st.integers(0, 3)):
        spec["score"] = grammar.text("real", draw(st.integers(0, depth)))
    if draw(st.integers(0, 3)):
        spec["mask"] = grammar.text("condition", draw(st.integers(0, depth)))
    if draw(st.integers(0, 3)) == 0:
        spec["schedule"] = draw(st.fixed_dictionaries({}, optional=_KNOBS))
    return spec
