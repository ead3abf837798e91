"""load_spec: what is a path, what is text, and the lines that errors name."""

import pytest

from fa3gen import paths
from fa3gen.errors import SpecError
from fa3gen.spec import AttentionSpec, load_spec

CAUSAL = AttentionSpec(head_dim=128, mask="causal")


def refusal(source):
    with pytest.raises(SpecError) as caught:
        load_spec(source)
    return caught.value


@pytest.mark.parametrize("path", sorted(paths.SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_specs(path):
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec == load_spec(path.stem) == load_spec(str(path)) == load_spec(path.read_text())


def test_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "head_dim: 128\nmask: causal\n"
    (tmp_path / "named").write_text(text)
    (tmp_path / "marked.yml").write_text(text, encoding="utf-8-sig")
    sources = [
        text,
        "{head_dim: 128, mask: causal}",
        "head_dim: 128\nmask: >\n  k\n  <= q",
        {"head_dim": 128, "mask": "causal"},
        CAUSAL,
        tmp_path / "named",
        "named",
        "marked.yml",
    ]
    assert {load_spec(source).canonical() for source in sources} == {CAUSAL.canonical()}


def test_yaml_booleans_are_what_they_look_like():
    spec = load_spec("head_dim: 64\nmask: true\nschedule: {persistent: false, pingpong: true}\n")
    assert spec.mask == "true"
    assert spec.schedule.persistent.value == "false"
    assert spec.schedule.pingpong is True


@pytest.mark.parametrize(
    ("text", "line", "key", "piece"),
    [
        ("head_dim: 128\nmask: k <= foo\n", 2, "mask", "foo"),
        ("head_dim: 128\nscedule: {}\n", 2, "scedule", "schedule?"),
        ("head_dim: 8\nschedule:\n  tile: {m: 64,\n    n: 81}\n", 4, "schedule.tile.n", "81"),
        ("head_dim: 8\ninputs:\n  s:\n    dtype: fp32\n    shape: [h,\n      q]", 6, None, "'q'"),
        ("head_dim: 8\nschedule:\n  pingpong: true\n  warpgroups: 1", 3, "schedule.pingpong", "2"),
        ("mask: full\n", 1, "head_dim", "required"),
        ("head_dim: 8\n\nhead_dim: 16\n", 3, "head_dim", "first in line 1"),
        ("head_dim: 8\nschedule: {overlap: 1,\n overlap: 2}", 3, "schedule.overlap", "twice"),
        ("head_dim: 8\nname: &a x\n", 2, None, "anchors"),
        ("head_dim: 8\nname: *a\n", 2, None, "aliases"),
        ("head_dim: 8\n<<: {mask: causal}\n", 2, "<<", "unknown key"),
        ("head_dim: 8\nmask: !!python/name:os.system ''\n", 2, "mask", "python/name"),
        ("head_dim: 8\nname: 2024-01-01\n", 2, "name", "timestamp"),
        ("head_dim: 8\n mask: causal\n", 2, None, "not YAML"),
        ("head_dim: [8\n", 2, None, "not YAML"),
        ("head_dim: 8\nmask: \x01\n", 2, None, "not YAML"),
        ("head_dim: 8\n---\nhead_dim: 8\n", 2, None, "document"),
        ("head_dim: 8\n? [a]\n: 1\n", 2, None, "text"),
        ("head_dim: !!int x\n", 1, "head_dim", "int"),
        ("head_dim: " + "[" * 4000 + "\n", 1, None, "deep"),
        ("- head_dim\n", 1, None, "mapping"),
        ("\n\n", 1, None, "mapping"),
    ],
)
def test_errors_name_the_line(text, line, key, piece):
    error = refusal(text)
    assert (error.file, error.line) == ("<text>", line), f"{text!r}: {error}"
    assert key is None or error.key == key
    assert piece in str(error)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("head_dim: 128\nmask: k <= foo\n")
    assert str(refusal(path)).startswith(f"{path}:2: mask: column 6: ")


@pytest.mark.parametrize(
    ("source", "piece"),
    [
        ("causal_d128", "did you mean causal_d128_bf16?"),
        ("nothing.yaml", "No such file"),
        ("", "read"),
        ("a\0b", "read"),
        (3, "path, YAML text"),
        ({1: 2}, "text"),
        ("head_dim: 8\n" + "#" * 65536, "64 KiB"),
        ("\ud800: 1", "UTF-8"),
    ],
)
def test_unreadable_sources(source, piece):
    assert piece in str(refusal(source))


def test_large_files_are_refused(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text("#" * 65537)
    assert "64 KiB" in str(refusal(path))
