"""AttentionSpec: its rules, its canonical form, and what its errors say."""

import json
import pickle
import subprocess
import sys

import pytest

from fa3gen.dtypes import DType
from fa3gen.errors import SpecError
from fa3gen.spec import AttentionSpec, HeadDim, InputSpec, ScheduleKnobs, TileKnob

ALIBI = {
    "head_dim": 64,
    "score": "score + slopes[h] * (k - q)",
    "inputs": {"slopes": {"shape": ["h"], "dtype": "fp32"}},
}


def refusal(**keys):
    with pytest.raises(SpecError) as caught:
        AttentionSpec(**keys)
    return caught.value


def test_python_form():
    spec = AttentionSpec(head_dim=128, mask="causal")
    assert spec.head_dim == HeadDim(qk=128, v=128)
    assert spec.dtype is DType.BF16
    assert spec.passes == ("forward",)
    assert spec.schedule == ScheduleKnobs()
    assert (spec.name, spec.score, spec.sink) == ("causal_d128_bf16", "score", None)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"head_dim": 128}, "full_d128_bf16"),
        ({"head_dim": 64, "mask": "q >= k", "dtype": "fp16"}, "causal_d64_fp16"),
        ({"head_dim": {"qk": 192, "v": 128}, "mask": "true"}, "full_d192_128_bf16"),
    ],
)
def test_derived_name(keys, name):
    assert AttentionSpec(**keys).name == name


@pytest.mark.parametrize(
    ("keys", "key", "remedy"),
    [
        ({}, "head_dim", "multiple of 8"),
        ({"head_dim": 100}, "head_dim", "multiple of 8"),
        ({"head_dim": 264}, "head_dim", "multiple of 8"),
        ({"head_dim": True}, "head_dim", "multiple of 8"),
        ({"head_dim": {"qk": 12, "v": 8}}, "head_dim.qk", "multiple of 8"),
        ({"msk": "causal"}, "msk", "did you mean mask?"),
        ({"schedule": {"pipline_depth": 2}}, "schedule.pipline_depth", "pipeline_depth?"),
        ({"dtype": "fp8"}, "dtype", "bf16, fp16 or e4m3"),
        ({"dtype": "fp32"}, "dtype", None),
        ({"passes": ["backward"]}, "passes", "[forward]"),
        ({"schedule": {"tile": {"m": 96}}}, "schedule.tile.m", "64, 128 or 192"),
        ({"schedule": {"tile": {"m": 256}}}, "schedule.tile.m", "64, 128 or 192"),
        ({"schedule": {"tile": {"n": 264}}}, "schedule.tile.n", "multiple of 16"),
        ({"schedule": {"tile": {"n": 72}}}, "schedule.tile.n", "multiple of 16"),
        ({"schedule": {"warpgroups": 4}}, "schedule.warpgroups", "1 to 3"),
        ({"schedule": {"tile": {"m": 128}, "warpgroups": 3}}, "schedule.tile.m", "write 192"),
        ({"schedule": {"pingpong": True, "warpgroups": 1}}, "schedule.pingpong", "warpgroups: 2"),
        ({"schedule": {"pingpong": True, "tile": {"m": 64}}}, "schedule.pingpong", "warpgroups"),
        ({"schedule": {"persistent": True}}, "schedule.persistent", "false, static or dynamic"),
        ({"schedule": {"pingpong": 1}}, "schedule.pingpong", "true"),
        ({"inputs": {"s": {"dtype": "fp32", "shape": ["q"]}}}, "inputs.s.shape.0", "row"),
        ({"inputs": {"s": {"dtype": "e4m3"}}}, "inputs.s.dtype", None),
        ({"inputs": {"s": {"dtype": "fp32", "example": "segments"}}}, "inputs.s.dtype", None),
        ({"sink": "s"}, "sink", "shape: [h]"),
        ({"sink": "s", "inputs": {"s": {"dtype": "int32", "shape": ["h"]}}}, "sink", "fp32"),
        ({"mask": "k <= rows"}, "mask", "did you mean row?"),
        ({"score": "scor / 2"}, "score", "did you mean score?"),
        ({"self": 1}, "self", "the keys are"),
    ],
)
def test_refusals_name_key_and_remedy(keys, key, remedy):
    error = refusal(**({"head_dim": 64} if keys and "head_dim" not in keys else {}), **keys)
    assert error.key == key
    assert error.rule
    text = f"{error.rule}; {error.remedy}"
    assert remedy is None or remedy in text, f"{keys}: {text}"


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "int", "a__b", "_a", "1a", "é", "a\n", "a" * 65, "a/b", "a.b"]
)
def test_bad_names(name):
    assert refusal(head_dim=64, name=name).key == "name"


@pytest.mark.parametrize(
    "name", ["row", "k", "v", "causal", "tanh", "int", "lambda", "scale", "_a"]
)
def test_bad_input_names(name):
    error = refusal(head_dim=64, inputs={name: {"dtype": "fp32"}})
    assert error.key == f"inputs.{name}"


def test_other_records_raise_spec_error_too():
    for record, keys in ((TileKnob, {"m": 5}), (HeadDim, {"qk": 8}), (InputSpec, {"shape": ["z"]})):
        with pytest.raises(SpecError):
            record(**keys)


def test_keys_that_are_not_text():
    assert "text" in refusal(head_dim=64, schedule={1: 2}).rule


def test_canonical_is_one_for_all_spellings():
    spellings = [
        AttentionSpec(head_dim=128, mask="causal"),
        AttentionSpec(head_dim=128, mask=" k <= q "),
        AttentionSpec(head_dim={"qk": 128, "v": 128}, mask="window(-1, 0)", dtype="bf16"),
        AttentionSpec(head_dim=128, mask="not k - q >= 1", passes=["forward"], inputs=None),
        AttentionSpec(head_dim=128, mask="causal & full", schedule={"tile": {}}),
    ]
    assert len({spec.canonical() for spec in spellings}) == 1
    assert len({spec.digest() for spec in spellings}) == 1
    assert json.loads(spellings[0].canonical())["mask"] == "k - q <= 0"


def test_canonical_completes_the_tile():
    by_rows = AttentionSpec(head_dim=64, schedule={"tile": {"m": 128}})
    by_warpgroups = AttentionSpec(head_dim=64, schedule={"warpgroups": 2})
    assert by_rows.digest() == by_warpgroups.digest()
    assert by_rows.digest() != AttentionSpec(head_dim=64).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 72},
        {"dtype": "fp16"},
        {"mask": "causal"},
        {"score": "score * 2"},
        {"passes": ["forward", "backward"]},
        {"schedule": {"persistent": False}},
        {"sink": "slopes"},
        {"name": "other"},
    ],
)
def test_digest_tells_variants_apart(change):
    base = AttentionSpec(**ALIBI)
    assert base.model_copy(update=change).digest() != base.digest()


def test_copies_are_checked_and_parsed_anew():
    spec = AttentionSpec(head_dim=64, mask="causal")
    copy = spec.model_copy(update={"mask": "full"})
    assert (copy.name, str(copy.mask_expr)) == ("full_d64_bf16", "True")
    with pytest.raises(SpecError):
        spec.model_copy(update={"mask": "nonsense"})


def test_frozen_hashable_picklable():
    spec, twin = AttentionSpec(**ALIBI), AttentionSpec(**ALIBI)
    assert spec == twin
    assert hash(spec) == hash(twin)
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"
    with pytest.raises(TypeError):
        spec.inputs["slopes"] = None


def test_json_schema():
    schema = AttentionSpec.json_schema()
    assert schema["required"] == ["head_dim"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(AttentionSpec.model_fields)
    assert schema["properties"]["dtype"]["enum"] == ["bf16", "fp16", "e4m3"]
    json.dumps(schema)


def test_canonical_does_not_depend_on_hash_seeds():
    program = (
        "from fa3gen.spec import AttentionSpec as A; print(A(head_dim=64, "
        "mask='causal & (prefix(9) | chunk(4)) & (h < 3)', score='min(score, k, h, 3)').digest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_the_model_imports_without_sympy():
    program = "import sys, fa3gen.spec.model; sys.exit('sympy' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, check=True
    )
