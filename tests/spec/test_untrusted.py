"""Specs from strangers: for any bytes a kernel or an error of fa3gen's own, soon and in little
memory, and nothing that a spec says is ever executed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import expression_texts, mutated_documents, specs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from untrusted import compile_text, limited, load_bytes
from worst import DOCUMENTS, FORMULAS, WORST

import fa3gen
from fa3gen.codegen import render
from fa3gen.errors import SpecError
from fa3gen.schedule import make_plan
from fa3gen.spec import load_spec

TESTS = Path(__file__).parent.parent
PACKAGE = Path(fa3gen.__file__).parent
SETTINGS = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for a spec."""
    return tmp_path_factory.mktemp("specs") / "spec.yaml"


def as_yaml(spec: dict[str, Any]) -> bytes:
    return yaml.safe_dump(spec, width=10**6).encode("utf-8", "replace")


# --- at random ------------------------------------------------------------------------------------


@settings(SETTINGS, max_examples=400)
@given(data=st.one_of(st.binary(max_size=200), mutated_documents()))
def test_bytes(data: bytes, path: Path) -> None:
    with limited():
        load_bytes(data, path)


@settings(SETTINGS, max_examples=300)
@given(spec=specs())
def test_formulas(spec: dict[str, Any], path: Path) -> None:
    with limited():
        load_bytes(as_yaml(spec), path)


@settings(SETTINGS, max_examples=300)
@given(key=st.sampled_from(("mask", "score")), text=expression_texts())
def test_texts(key: str, text: str, path: Path) -> None:
    with limited():
        load_bytes(as_yaml({"head_dim": 64, key: text}), path)


@settings(SETTINGS, max_examples=25)
@given(spec=specs())
def test_kernels(spec: dict[str, Any], path: Path) -> None:
    with limited():
        found = load_bytes(as_yaml(spec), path)
        if found is not None:
            compile_text(found)


# --- one by one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_refused(name: str, path: Path) -> None:
    with limited():
        assert load_bytes(DOCUMENTS[name], path) is None


@pytest.mark.parametrize(
    "text",
    ["k <=\n q", "causal &\r\n  causal", "k\t<= q", "k\x0c<= q", "\n\n causal \n"],
    ids=repr,
)
def test_no_line_break_leaves_a_comment(text: str) -> None:
    score = text.replace("causal &", "score +").replace("causal", "score").replace("<=", "+")
    source = render(make_plan(load_spec({"head_dim": 64, "mask": text, "score": score})))
    for unit in source.units:
        banner = unit.text[: unit.text.index("#include")]
        assert all(line.startswith("//") or not line for line in banner.splitlines()), banner


@pytest.mark.parametrize("char", ["\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\u202e", "\x1b"])
def test_other_blanks_are_no_part_of_a_formula(char: str) -> None:
    for text in (f"k{char}<= q", f"{char}k <= q"):
        with pytest.raises(SpecError, match="not a character of a formula"):
            load_spec({"head_dim": 64, "mask": text})


@pytest.mark.parametrize("key", ["\x1b[31mred", "a\u202eb", "c\rd", "\x9b2J"])
def test_messages_have_no_escapes(key: str) -> None:
    texts = []
    for spec in ({key: 1}, {"inputs": {key: 1}}, {"mask": key}, {"sink": key}, {"dtype": key}):
        with pytest.raises(SpecError) as caught:
            load_spec({"head_dim": 64, **spec})
        texts.append(str(caught.value))
    assert all(text.isprintable() for text in texts), texts


@pytest.mark.parametrize("text", FORMULAS)
def test_what_sympy_alone_takes_for_an_integer(text: str, path: Path) -> None:
    """Kernels compute it in fp32, and round it where it is an index."""
    inputs = {
        "alpha": {"dtype": "fp32"},
        "lut": {"shape": [5], "dtype": "int32"},
        "Float": {"shape": ["h"], "dtype": "int32"},
    }
    key = "mask" if "<" in text else "score"
    spec = load_bytes(as_yaml({"head_dim": 64, key: text, "inputs": inputs}), path)
    assert spec is not None
    with limited():
        assert compile_text(spec, prove=False)


# --- what it takes, and does ----------------------------------------------------------------------

_WITHIN = """
import resource, sys, time
from pathlib import Path
from test_untrusted import as_yaml
from untrusted import SECONDS, compile_text, load_bytes
from worst import WORST

path = Path(sys.argv[1])
assert compile_text(load_bytes(as_yaml({"head_dim": 72}), path))
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30,) * 2)
for name, spec in WORST.items():
    begin = time.process_time()
    found = load_bytes(as_yaml({"head_dim": 64, **spec}), path)
    kernel = found is not None and compile_text(found, prove=False)
    took = time.process_time() - begin
    print(f"{name}: kernel {kernel}, {took:.2f} s", flush=True)
    assert took < SECONDS, name
"""

_SILENT = """
import sys
from pathlib import Path
import sympy
from test_untrusted import as_yaml
from untrusted import compile_text, load_bytes
from worst import CODE, DOCUMENTS
from fa3gen.paths import TEMPLATES

SYMPY = str(Path(sympy.__file__).parent)
HEARD = ("import", "os", "subprocess", "socket", "shutil", "ctypes")
path = Path(sys.argv[1])
assert compile_text(load_bytes(as_yaml({"head_dim": 72, "score": "tanh(score) + k"}), path))
events, listening = [], True

def hook(event, arguments):
    if not listening:
        return
    if event == "open":
        file, mode, _ = arguments
        if str(file) == str(path) or not set(str(mode)) & set("wax+"):
            return
    elif event == "compile":
        return  # to a syntax tree; "exec" tells of what is run
    elif event == "exec":
        file = arguments[0].co_filename
        if file.startswith((str(TEMPLATES), SYMPY)):
            return
    elif event == "import" and arguments[0].startswith("sympy."):
        return  # parts of it are imported when they are needed
    elif event.partition(".")[0] not in HEARD:
        return
    elif event in ("os.listdir", "os.scandir"):
        return
    events.append((event, str(arguments)[:200]))

sys.addaudithook(hook)
texts = [{"head_dim": 64, key: text} for text in CODE for key in ("mask", "score", "name", "sink")]
texts += [{"head_dim": 64, "inputs": {text: {"dtype": "fp32"}}} for text in CODE]
for data in [*map(as_yaml, texts), *DOCUMENTS.values()]:
    assert load_bytes(data, path) is None, data
assert compile_text(load_bytes(as_yaml({"head_dim": 72, "score": "2 * tanh(score)"}), path))
listening = False
assert not events, events
eval("1")
listening = True
eval("2")
listening = False
assert [event for event, _ in events] == ["exec"], events  # it does hear
"""


def _python(script: str, path: Path) -> str:
    folders = [str(PACKAGE.parent), str(TESTS), str(TESTS / "spec")]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_worst_cases_stay_within_time_and_memory(path: Path) -> None:
    lines = _python(_WITHIN, path).splitlines()
    assert [line.partition(":")[0] for line in lines] == list(WORST)
    assert sum("kernel True" in line for line in lines) > 8, lines


def test_nothing_is_executed(path: Path) -> None:
    """While hostile texts are parsed, and one kernel is made from start to end."""
    _python(_SILENT, path)


_DOORS = {"eval", "exec", "sympify", "parse_expr", "lambdify", "pickle", "marshal", "shelve"}
_YAML_DOORS = {
    "load",
    "load_all",
    "unsafe_load",
    "full_load",
    "Loader",
    "FullLoader",
    "UnsafeLoader",
}


def test_the_package_has_no_door_to_execution() -> None:
    """It names nothing that executes text, and no loader of YAML but a safe one."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id="yaml"), attr=name) if name in _YAML_DOORS:
                    found.append(f"{path}:{node.lineno}: yaml.{name}")
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                    if name.partition(".")[0] in _DOORS:
                        found.append(f"{path}: {name}")
    assert found == []
