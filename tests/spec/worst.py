"""Specs that someone who wishes ill would think of first, each for a fault of its own kind."""

from __future__ import annotations

from typing import Any

__all__ = ["CODE", "DOCUMENTS", "FORMULAS", "WORST"]

_HEAD = b"head_dim: 64\n"

# Refused, each within a second.
DOCUMENTS: dict[str, bytes] = {
    "an anchor": _HEAD + b"mask: &a causal\n",
    "billion laughs": b"a: &a [x, x]\n"
    + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in range(98, 123)),
    "aliases": _HEAD + b"mask: [" + b"*a," * 20000 + b"]\n",
    "merge keys": _HEAD + b"<<: {mask: causal}\n",
    "a call": _HEAD + b"mask: !!python/object/apply:os.system ['exit']\n",
    "a module": _HEAD + b"mask: !!python/module:os x\n",
    "a tag with an escape": _HEAD + b"mask: !a%1b%5b31mx y\n",
    "binary": _HEAD + b"mask: !!binary aGVsbG8=\n",
    "a date": _HEAD + b"mask: 2001-12-14t21:59:43.10-05:00\n",
    "an untrue int": _HEAD + b"mask: !!int causal\n",
    "a key twice": _HEAD + _HEAD,
    "deep lists": _HEAD + b"mask: " + b"[" * 30000 + b"]" * 30000,
    "deep mappings": b"{a: " * 8000 + b"}" * 8000,
    "deep blocks": b"".join(b" " * i + b"a:\n" for i in range(300)),
    "deep items": b"- " * 20000,
    "deep keys": b"? " * 20000,
    "many keys": b"".join(b"k%d: 1\n" % i for i in range(6000)),
    "many documents": b"---\n" * 15000,
    "a long key": _HEAD + b"inputs: {? " + b"a" * 60000 + b" : {dtype: fp32}}\n",
    "a long sink": _HEAD + b"sink: " + b"a" * 60000,
    "a long shape": _HEAD + b"inputs: {a: {dtype: fp32, shape: [" + b"1," * 20000 + b"]}}\n",
    "a long integer": b"head_dim: " + b"9" * 60000,
    "a long score": _HEAD + b"score: " + b"9" * 60000,
    "a long hexadecimal score": _HEAD + b"score: 0x" + b"f" * 60000,
    "a long sexagesimal": b"head_dim: 1" + b":59" * 20000,
    "a long sexagesimal float": b"head_dim: 1" + b":59" * 20000 + b".5",
    "a large exponent": b"head_dim: 1.0e+99999999999999",
    "too long": _HEAD + b"#" * 2**16,
    "not UTF-8": _HEAD + b"mask: \xff\n",
    "a null": _HEAD + b"mask: \0\n",
    "another version": b"%YAML 9.9\n---\n" + _HEAD,
    "an absolute name": _HEAD + b"name: /etc/passwd\n",
    "a name above": _HEAD + b"name: ../../x\n",
    "a name with an escape": _HEAD + b'name: "a\\e[31mb"\n',
    "a name with a null": _HEAD + b'name: "a\\0b"\n',
    "a name that turns": _HEAD + b'name: "a\\u202eb"\n',
    "a name of two lines": _HEAD + b'name: "a\\n"\n',
    "a long name": _HEAD + b"name: " + b"a" * 300,
    "powers of powers": _HEAD + b"score: score + 2 ** 2 ** 2 ** 64\n",
    "a shift": _HEAD + b"score: score * (1 << 2 ** 64)\n",
    "parentheses": _HEAD + b"mask: " + b"(" * 900 + b"k" + b")" * 900 + b" < q\n",
    "a long sum": _HEAD + b"score: score" + b"+1" * 900,
    "a long power": _HEAD + b"score: score" + b"**2" * 600,
    "a long chain": _HEAD + b"mask: " + b"not " * 400 + b"causal\n",
}


def _nested(before: str, inside: str, behind: str, depth: int) -> str:
    return before * depth + inside + behind * depth


_TABLES: dict[str, Any] = {
    f"i{n}": {"shape": [2**31 - 1] * 4, "dtype": "int32" if n % 2 else "bf16"} for n in range(32)
}
_REACHES = {f"r{n}": {"dtype": "int32"} for n in range(20)}

# What may take long, or much: a kernel or an error within five seconds and 1 GiB.
WORST: dict[str, dict[str, Any]] = {
    "conditions to choose by": {"mask": _nested("where(", "causal", ", k < 3, q < 5)", 45)},
    "chains to choose by": {"score": _nested("where(0 < ", "score", " < 3, 1, 2)", 24)},
    "windows": {"mask": " or ".join(f"window({i}, {i * 7})" for i in range(80))},
    "chunks": {"mask": " & ".join(f"(chunk({i + 2}) | prefix({i}))" for i in range(45))},
    "large chunks": {"mask": "chunk(2147483647) | prefix(2147483647) & window(2147483647, 0)"},
    "reaches": {
        "mask": " | ".join(f"window(r{n}, r{n + 1})" for n in range(19)),
        "inputs": _REACHES,
    },
    "remainders": {"mask": " and ".join(f"(k % {p} == 0 or k == {p})" for p in range(2, 60))},
    "extremes": {"mask": " and ".join(f"max(q, k - {i}) < min(k + {i}, q + 5)" for i in range(45))},
    "a maximum of many": {"score": "max(" + ", ".join(f"score * {i} + k" for i in range(16)) + ")"},
    "a maximum of maxima": {
        "score": "max(" * 9
        + "score"
        + "".join("," + ",".join(f"k*{9 * i + j}+score" for j in range(13)) + ")" for i in range(9))
    },
    "a sum to a power": {"mask": "((((q + k + row) ** 64) ** 1 + 1) * (q + 1)) ** 2 < 3"},
    "tanh of tanh": {"score": _nested("tanh(", "score", ")", 45)},
    "powers": {"score": "(score ** score) ** score ** k"},
    "tables": {
        "score": " + ".join(["score", *(f"i{n}[k, q, row, h]" for n in range(32))]),
        "mask": " and ".join(f"i{n}[k, q, row, h] > 0" for n in range(32)),
        "inputs": _TABLES,
    },
    "large factors": {"mask": "k * 2147483647 < q * 2147483646 + 2147483647"},
}

# Which sympy calls integers, and an int32 does not hold.
FORMULAS = [
    "score * 2 ** h",
    "score + 2 ** h * (k - q)",
    "4.881342541235091e+16 ** h",
    "floor(score) + k",
    "floor(1e30 * score) // 3",
    "-floor(-score)",
    "lut[floor(alpha) + k]",
    "lut[floor(2 ** h)]",
    "score + lut[lut[floor(log(k + 1))]]",
    "score + Float[h]",
    "abs(21 - 18) <= (k - q - 1.6e16) * min(12, 2147483647)",
    "k * 2147483647 * 2147483647 < q",
    "floor(log(k + 1)) < 3",
    "k < floor(log(h + 2))",
    "2 ** h * k < q",
    "k % 1e12 < 3",
    "k // 1e12 < 3",
    "Float[h] * k < q",
]

# Formulas that would do something, were they executed.
CODE = [
    "__import__('os').system('echo executed')",
    "().__class__.__bases__[0].__subclasses__()",
    "(lambda: print(1))()",
    "[print(k) for k in q]",
    "score.__class__",
    "f'{print(1)}'",
    "print(1)",
    "exec('print(1)')",
    "eval('1')",
    "open('executed', 'w')",
    "(k := 1)",
    "max(*print(1))",
    "k if print(1) else q",
    "k\\\n<= q",
    "\uff4b <= q",
    "compile('1', '', 'eval')",
    "Symbol('k')",
    "k.subs(k, 1)",
    "await k",
    "score['__class__']",
]
