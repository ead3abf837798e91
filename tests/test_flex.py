"""FlexAttention's callables: what is traced means what the callable computes, point by point."""

import functools
import math

import pytest
import torch
from sympy.core.function import AppliedUndef
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import and_masks, or_masks

from fa3gen.errors import SpecError, UnsupportedError
from fa3gen.flex import from_flex
from fa3gen.schedule.interpret import evaluate
from fa3gen.spec import AttentionSpec
from fa3gen.spec.symbols import b, h, k, row, score

SIZES = BATCH, HEADS, ROWS, KEYS = 2, 4, 5, 7
SCORES = torch.randn(SIZES, generator=torch.Generator().manual_seed(1))

slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
lengths = torch.tensor([3, 1])
document_ids = torch.tensor([0, 0, 1, 1, 1, 2, 2])
document_starts = torch.tensor([0, 2, 5])
relative = torch.linspace(-1, 1, HEADS * 16).reshape(HEADS, 16)
bias = torch.linspace(-2, 2, BATCH * HEADS * ROWS * KEYS, dtype=torch.float64).reshape(SIZES)
tree = torch.arange(ROWS * KEYS).reshape(ROWS, KEYS) % 3 == 0
offset = torch.tensor(2)


def trace(score_mod=None, mask_mod=None):
    return from_flex(score_mod, mask_mod, head_dim=64)


def direct(function, *, scores=True):
    """What a callable gives at each point, on 0-d tensors."""
    points = torch.cartesian_prod(*(torch.arange(n, dtype=torch.int32) for n in SIZES))
    if scores:
        rows = zip(SCORES.flatten(), points, strict=True)
        values = [torch.as_tensor(function(s, *point)) for s, point in rows]
    else:
        values = [torch.as_tensor(function(*point)) for point in points]
    return torch.stack(values).reshape(SIZES)


def traced(expr, inputs):
    """What a formula gives at all points; a table's indices are clamped to it."""
    axes = torch.meshgrid(*(torch.arange(n) for n in SIZES), indexing="ij")
    values = dict(zip((b, h, row, k, score), (*axes, SCORES), strict=True))
    values |= {x: inputs[x.name] for x in expr.free_symbols if x.name in inputs}
    lookups = sorted(expr.atoms(AppliedUndef), key=lambda x: len(x.atoms(AppliedUndef)))
    for lookup in lookups:  # the innermost first
        table = inputs[lookup.func.__name__]
        places = (evaluate(index, values).expand(SIZES) for index in lookup.args)
        places = zip(places, table.shape, strict=True)
        values[lookup] = table[tuple(place.clamp(0, size - 1) for place, size in places)]
    return evaluate(expr, values).expand(SIZES)


def check_mask(mask_mod):
    variant = trace(mask_mod=mask_mod)
    assert torch.equal(
        traced(variant.spec.mask_expr, variant.inputs), direct(mask_mod, scores=False)
    )
    return variant


def check_score(score_mod):
    variant = trace(score_mod)
    wanted = direct(score_mod).float()
    torch.testing.assert_close(traced(variant.spec.score_expr, variant.inputs).float(), wanted)
    return variant


# --- the examples of FlexAttention ----------------------------------------------------------------


def causal(b, h, q, k):
    return q >= k


def window(b, h, q, k):
    return q - k <= 2


def prefix(b, h, q, k):
    return k < lengths[b]


def same_document(b, h, q, k):
    return document_ids[q] == document_ids[k]


def causal_in_documents(b, h, q, k):
    inside = [x - document_starts[document_ids[x]] for x in (q, k)]
    return same_document(b, h, q, k) & causal(b, h, *inside)


def dilated(b, h, q, k):
    distance = (q - k).abs()
    return (distance <= 4) & (distance % 2 == 0)


def neighbours(b, h, q, k):
    """Each pixel of a 3 x 3 image sees those around the nearest full neighbourhood's centre."""
    x, y = q // 3, q % 3
    x, y = x.clamp(1, 1), torch.clamp(y, min=1, max=1)
    return ((k // 3 - x).abs() <= 1) & ((k % 3 - y).abs() <= 1)


def tiled_neighbours(b, h, q, k):
    """The same of pixels that lie in tiles of 2 x 2 in an image 4 wide."""

    def pixel(index):
        tile, inside = index // 4, index % 4
        return tile // 2 * 2 + inside // 2, tile % 2 * 2 + inside % 2

    (qx, qy), (kx, ky) = pixel(q), pixel(k)
    x, y = torch.minimum(qx, torch.tensor(2)), qy.clamp_max(2)
    return (abs(kx - x) <= 1) & (abs(ky - y) <= 1)


def around(b, h, q, k):
    """Pixels of an image 3 wide, at most one apart each way."""
    return ((q // 3 - k // 3).abs() <= 1) & ((q % 3 - k % 3).abs() <= 1)


def transfusion(b, h, q, k):
    """Causal, and both ways within a captured span of each batch."""
    start, end = lengths[b], lengths[b] + 2
    both = (start <= q) & (q < end) & (start <= k) & (k < end)
    return or_masks(causal, lambda *_: both)(b, h, q, k)


@pytest.mark.parametrize(
    ("mask_mod", "text"),
    [
        (lambda b, h, q, k: b.new_ones((), dtype=torch.bool), "true"),
        (lambda b, h, q, k: True, "true"),
        (causal, "row >= k"),
        (and_masks(causal, window), "(row >= k) & (row - k <= 2)"),
        (or_masks(causal, prefix), "(row >= k) | (k < lengths[b])"),
        (same_document, "document_ids[row] == document_ids[k]"),
        (causal_in_documents, None),
        (lambda b, h, q, k: (q + k) % 2 == h % 2, "(row + k) % 2 == h % 2"),
        (dilated, "(abs(row - k) <= 4) & (abs(row - k) % 2 == 0)"),
        (neighbours, None),
        (tiled_neighbours, None),
        (around, None),
        (transfusion, None),
        (lambda b, h, q, k: tree[q, k], "tree[row, k] != 0"),
        (lambda b, h, q, k: causal(b, h, q + offset, k), "row + offset >= k"),
        (lambda b, h, q, k: ~causal(b, h, q, k) ^ (k < 4), None),
        (lambda b, h, q, k: (k < 4) != tree[q, k], None),
        (lambda b, h, q, k: (k < 4) == tree[q, k], None),
        (lambda b, h, q, k: torch.where(h < 2, q >= k, q <= k), None),
        (lambda b, h, q, k: (q >= k) * (q < k + 3) + (k == 0), None),
        (lambda b, h, q, k: torch.logical_not(torch.logical_or(q > k, q - k)), None),
        (lambda b, h, q, k: torch.logical_xor(q > k, h).logical_and(k), None),
        (lambda b, h, q, k: (k + q % 2).bool(), "k + row % 2 != 0"),
    ],
)
def test_masks_keep_the_keys_that_the_callable_keeps(mask_mod, text):
    variant = check_mask(mask_mod)
    assert text is None or variant.spec.mask == text
    assert variant.spec.score == "score"


def t5_buckets(s, b, h, q, k):
    """Distances of T5: exact to 4, then by their logarithm up to 16, in buckets of a table."""
    distance = torch.maximum(q - k, torch.zeros_like(q))
    far = 4 + (torch.log(distance.clamp(min=1).float() / 4) / math.log(4.5) * 4).to(torch.long)
    return s + relative[h, torch.where(distance < 4, distance, torch.clamp(far, max=7))]


@pytest.mark.parametrize(
    ("score_mod", "text"),
    [
        (lambda s, b, h, q, k: s, "score"),
        (lambda s, b, h, q, k: s + slopes[h] * (k - q), "score + slopes[h] * (k - row)"),
        (lambda s, b, h, q, k: s + torch.exp2(-((h + 1) * 8.0 / HEADS)) * (k - q), None),
        (lambda s, b, h, q, k: 20 * torch.tanh(s / 20), "tanh(score / 20) * 20"),
        (lambda s, b, h, q, k: s + (q - k), "score + (row - k)"),
        (lambda s, b, h, q, k: s + relative[h, q - k + 7], "score + relative[h, row - k + 7]"),
        (lambda s, b, h, q, k: s + bias[b, h, q, k], "score + bias[b, h, row, k]"),
        (lambda s, b, h, q, k: s + bias[b][h][q, k], "score + bias[b, h, row, k]"),
        (lambda s, b, h, q, k: s + bias[b, :, q][h][k], "score + bias[b, h, row, k]"),
        (lambda s, b, h, q, k: s + bias[..., k][0, h, -1], "score + bias[0, h, 4, k]"),
        (lambda s, b, h, q, k: s + slopes[h // 2], "score + slopes[h // 2]"),
        (
            lambda s, b, h, q, k: s * s.sigmoid() + torch.relu(s),
            "score * sigmoid(score) + max(score, 0)",
        ),
        (
            lambda s, b, h, q, k: torch.where(q >= k, s, -float("inf")),
            "where(row >= k, score, -inf)",
        ),
        (lambda s, b, h, q, k: s.masked_fill(q < k, -1e4), "where(row < k, -10000, score)"),
        (lambda s, b, h, q, k: torch.where(tree[q, k], s, 0.1 * s), None),
        (lambda s, b, h, q, k: s * tree[q, k] + (q >= k), None),
        (t5_buckets, None),
    ],
)
def test_scores_are_what_the_callable_computes(score_mod, text):
    variant = check_score(score_mod)
    assert text is None or variant.spec.score == text
    assert variant.spec.mask == "full"


@pytest.mark.parametrize(
    "score_mod",
    [
        lambda s, b, h, q, k: 2 - s + torch.sub(s, q, alpha=3) + torch.rsub(s, k, alpha=2),
        lambda s, b, h, q, k: torch.add(s, k, alpha=0.5) - (-k) + abs(s) + s.neg(),
        lambda s, b, h, q, k: s / (q + 1) + 3 / (k + 1) + q / 3 + (q - k) // 3 + (q - k) % -3,
        lambda s, b, h, q, k: s // 0.5 + s % 0.75 + torch.div(s, 2, rounding_mode="floor"),
        lambda s, b, h, q, k: s + torch.div(q - k, 2, rounding_mode="trunc"),
        lambda s, b, h, q, k: s + (4 * s).to(torch.int32) // 3 + torch.trunc(5 * s),
        lambda s, b, h, q, k: s + relative[h, (q.float() / 2).floor().long()] + (q / 2).int(),
        lambda s, b, h, q, k: torch.floor(3 * s) + torch.ceil(3 * s) + q.floor(),
        lambda s, b, h, q, k: torch.clamp(s, -0.5, 0.75) + s.clamp(max=k) + s.clamp_min(-1),
        lambda s, b, h, q, k: torch.minimum(s, k * 0.25) + torch.max(q, k) + min(2, 3),
        lambda s, b, h, q, k: torch.exp(s) + torch.exp2(s) + torch.log(abs(s)) + torch.log2(k + 1),
        lambda s, b, h, q, k: torch.sqrt(abs(s)) + torch.rsqrt(abs(s) + 1) + (s + 9).reciprocal(),
        lambda s, b, h, q, k: s**2 + abs(s) ** 0.5 + (q + 1) ** -1.5 + 2**s + 0.5 ** (k - q),
        lambda s, b, h, q, k: s + (q >> 1) + (k << 2) + torch.bitwise_right_shift(q - k, 1),
        lambda s, b, h, q, k: s.double().detach().clone() + torch.full((), 0.1) + torch.tensor(3),
        lambda s, b, h, q, k: torch.where((s > 0) == (q > k), s, torch.where(s <= 1, k, -2.5)),
        lambda s, b, h, q, k: s + ((q == 1) | (k != 2)) + torch.where(q < k, 1, 0) * (s >= 0),
        lambda s, b, h, q, k: (-2.0) ** 2 * s - torch.tensor(-3) * s + torch.ones_like(s) * 1e-7,
        lambda s, b, h, q, k: torch.zeros(()).add_(2).mul_(3) * s,
        lambda s, b, h, q, k: 1.5,
    ],
)
def test_operations_mean_what_torch_means(score_mod):
    assert not set(check_score(score_mod).inputs) - {"relative"}


def test_both_callables_share_their_inputs():
    def score_mod(score, b, h, q_idx, kv_idx):
        return score + slopes[h] * (document_ids[q_idx] - document_ids[kv_idx])

    variant = trace(score_mod, same_document)
    assert {name: spec.shape for name, spec in variant.spec.inputs.items()} == {
        "document_ids": ("k",),
        "slopes": ("h",),
    }


def test_nothing_is_the_plain_spec():
    assert trace().spec == AttentionSpec(head_dim=64)
    assert trace().inputs == {}


def test_the_other_arguments_reach_the_spec():
    spec = from_flex(
        head_dim={"qk": 192, "v": 128},
        dtype="fp16",
        name="mine",
        passes=("forward", "backward"),
        schedule={"overlap": 1},
    ).spec
    keys = {"head_dim": {"qk": 192, "v": 128}, "dtype": "fp16", "name": "mine"}
    wanted = AttentionSpec(**keys, passes=["forward", "backward"], schedule={"overlap": 1})
    assert spec == wanted
    with pytest.raises(SpecError, match="head dimension"):
        from_flex(mask_mod=causal, head_dim=7)


# --- captured tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score_mod", "shape"),
    [
        (lambda s, b, h, q, k: s + bias[b, h, q, k], ("b", "h", "row", "k")),
        (lambda s, b, h, q, k: s + bias[b, h, 0, k] + bias[b, 0, q, k], ("b", HEADS, ROWS, "k")),
        (lambda s, b, h, q, k: s + bias[b, h // 1, q + 0, k], ("b", HEADS, ROWS, "k")),
        (lambda s, b, h, q, k: s + bias[b, h, q, q] + bias[b, h, q, k], ("b", "h", "row", "k")),
        (lambda s, b, h, q, k: s + bias[b, h, q, b] + bias[b, b, q, k], ("b", HEADS, "row", KEYS)),
    ],
)
def test_a_dimension_is_an_index_where_nothing_else_is_applied(score_mod, shape):
    assert trace(score_mod).spec.inputs["bias"].shape == shape


@pytest.mark.parametrize(
    ("dtype", "declared", "passed"),
    [
        (torch.float32, "fp32", torch.float32),
        (torch.bfloat16, "bf16", torch.bfloat16),
        (torch.float16, "fp16", torch.float16),
        (torch.float64, "fp32", torch.float32),
        (torch.int32, "int32", torch.int32),
        (torch.int64, "int32", torch.int32),
        (torch.uint8, "int32", torch.int32),
        (torch.bool, "int32", torch.int32),
    ],
)
def test_an_input_is_passed_in_a_type_of_inputs(dtype, declared, passed):
    table = torch.tensor([0, 1, 2, 3]).to(dtype)
    variant = trace(lambda s, b, h, q, k: s + table[h])
    assert variant.spec.inputs["table"].dtype.value == declared
    assert variant.inputs["table"].dtype is passed
    assert (variant.inputs["table"] is table) == (dtype is passed)


class Bias(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.ones(HEADS))
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, score, b, h, q_idx, kv_idx):
        return score * self.scale + self.table[h]

    def __repr__(self):
        raise AssertionError("names are found without it")


@pytest.mark.parametrize("callable_of", [lambda m: m, lambda m: m.forward, lambda m: m.__call__])
def test_parameters_are_inputs_themselves_named_like_attributes(callable_of):
    module = Bias()
    variant = trace(callable_of(module))
    assert variant.inputs["table"] is module.table
    assert variant.inputs["scale_"] is module.scale, "scale is an argument of every op"
    assert variant.spec.score == "score * scale_ + table[h]"


def test_names_are_found_in_partials_and_defaults_and_are_unique():
    def score_mod(score, b, h, q, k, table=slopes + 1, *, other=slopes + 2):
        return score + table[h] + other[h]

    bound = functools.partial(lambda table, s, *at: score_mod(s, *at) + table[at[1]], slopes * 1)
    names = set(trace(bound).inputs)
    assert {"table", "other"} <= names
    assert len(names) == 3


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("q", "q_"),
        ("__x__y", "x_y"),
        ("été", "t"),
        ("_1", "input_0"),
        ("bias2_", "bias2"),
        ("float", "float_"),
    ],
)
def test_names_are_made_legal(variable, name):
    scope = {variable: slopes}
    score_mod = eval(f"lambda s, b, h, row, col: s + {variable}[h]", scope)
    assert list(trace(score_mod).inputs) == [name]


def test_what_depends_on_captured_tensors_alone_is_computed_at_once():
    variant = check_score(lambda s, b, h, q, k: s + (2 * slopes).exp()[h] * slopes.sum())
    assert set(variant.inputs) == {"input_0", "input_1"}
    assert torch.equal(variant.inputs["input_0"], (2 * slopes).exp())
    variant = check_score(lambda s, b, h, q, k: s * offset.item() if offset else -s)
    assert variant.inputs == {}


def test_a_captured_scalar_stays_an_input_in_arithmetic():
    variant = check_score(lambda s, b, h, q, k: torch.where(k > 2 * offset + 1, s, s / offset))
    assert variant.inputs["offset"].dtype is torch.int32
    assert variant.spec.inputs["offset"].shape == ()


def test_tensors_that_the_formula_does_without_are_no_inputs():
    def score_mod(score, b, h, q, k):
        _ = slopes[h], offset + h
        return score + torch.tensor([1.0, 2.0])[k % 2]

    variant = check_score(score_mod)
    assert list(variant.inputs) == ["input_0"]


def test_fake_tensors_are_traced_like_others():
    with FakeTensorMode():
        table, scalar = torch.zeros(HEADS, dtype=torch.int64), torch.ones(())
    variant = trace(lambda s, b, h, q, k: s * scalar + table[h])
    assert variant.spec.score == "score * scalar + table[h]"


# --- refusals -------------------------------------------------------------------------------------


def twice(s, b, h, q, k):
    for _ in range(40):
        s = s * s
    return s


def long(steps):
    return lambda s, b, h, q, k: functools.reduce(torch.add, [k] * steps, s)


huge = torch.tensor([2**40])
small = torch.zeros(HEADS, dtype=torch.int8)


@pytest.mark.parametrize(
    ("score_mod", "message"),
    [
        (lambda s, b, h, q, k: torch.erf(s), r"aten\.erf has no form in formulas; write it with"),
        (lambda s, b, h, q, k: s + (q ^ k), r"aten\.bitwise_xor .*; integers have // % and shifts"),
        (lambda s, b, h, q, k: s + (q & 1), r"aten\.bitwise_and .*; integers have // % and shifts"),
        (lambda s, b, h, q, k: torch.fmod(s, 2), r"aten\.fmod .*; use torch\.remainder"),
        (lambda s, b, h, q, k: torch.round(s), r"aten\.round .*; use torch\.floor\(x \+ 0\.5\)"),
        (lambda s, b, h, q, k: torch.isinf(s), r"aten\.isinf .*; compare with a number"),
        (lambda s, b, h, q, k: s.add_(1), r"aten\.add_ .*; write it out of place"),
        (lambda s, b, h, q, k: torch.dropout(s, 0.5, True), r"aten\.bernoulli_ draws random"),
        (lambda s, b, h, q, k: s if q >= k else -s, r"aten\._local_scalar_dense: .*torch\.where"),
        (lambda s, b, h, q, k: s + [1, 2][b], r"aten\._local_scalar_dense: .*captured tensor"),
        (lambda s, b, h, q, k: min(s, k), r"aten\._local_scalar_dense: .*torch\.minimum"),
        (lambda s, b, h, q, k: s**k, r"aten\.pow has a constant exponent, or a constant base"),
        (lambda s, b, h, q, k: s + (q << k), "shifts are by a constant of 0 to 30 bits"),
        (lambda s, b, h, q, k: s + float("nan"), "real numbers and -inf, and nan is neither"),
        (
            lambda s, b, h, q, k: s + small[h] * small[0],
            "int8 wraps around; convert to torch.int32",
        ),
        (lambda s, b, h, q, k: torch.complex(s, s), r"aten\.complex has no form"),
        (lambda s, b, h, q, k: s + slopes.to(torch.complex64)[h], "torch.complex64 is not"),
        (lambda s, b, h, q, k: s * 1j, r"real numbers and -inf, and 1j is neither"),
        (lambda s, b, h, q, k: s + slopes * h, r"index all dimensions of \(4,\) first"),
        (lambda s, b, h, q, k: s + bias[b, h, q], r"index all dimensions of \(7,\) first"),
        (lambda s, b, h, q, k: s + slopes[h, q], "slopes takes 1 indices, not 2"),
        (lambda s, b, h, q, k: s + bias[b, h, 1:, k], r"indexed by integers and `:`, not by slice"),
        (lambda s, b, h, q, k: s + slopes[q > k], "an index is an integer"),
        (lambda s, b, h, q, k: s + s[q], "only captured tensors are indexed"),
        (lambda s, b, h, q, k: slopes.gather(0, h), r"aten\.gather .*; write table\[h, q_idx\]"),
        (lambda s, b, h, q, k: s.expand(2), "more of one element"),
        (lambda s, b, h, q, k: slopes, r"score_mod returns one element.*\(got \(4,\)\)"),
        (lambda s, b, h, q, k: None, "score_mod returns one element.*NoneType"),
        (lambda s, b, h, q: s, "score_mod cannot be traced: TypeError: .*positional arguments"),
        (
            lambda s, b, h, q, k: s + huge[k],
            "inputs are of 32 bits, and huge holds .*1099511627776",
        ),
        (lambda s, b, h, q, k: s + 2**40 * q, "not a formula of fa3gen: score: column"),
        (lambda s, b, h, q, k: s + float("inf"), "not a formula of fa3gen: score: .*inf"),
        (long(60), "not a formula of fa3gen: score: a formula nests at most 50 deep"),
        (long(300), "score_mod nests too deep for a formula"),
        (twice, "grows beyond 20000 characters"),
    ],
)
def test_what_has_no_formula_is_refused_by_name(score_mod, message):
    with pytest.raises(UnsupportedError, match=message):
        trace(score_mod)


def test_a_mask_is_a_boolean():
    with pytest.raises(UnsupportedError, match=r"mask_mod returns a boolean .*compare it with 0"):
        trace(mask_mod=lambda b, h, q, k: q - k)
    with pytest.raises(UnsupportedError, match=r"aten\._local_scalar_dense"):
        trace(mask_mod=lambda b, h, q, k: q >= k and q - k < 3)


def test_operators_of_other_libraries_are_refused():
    from torch.library import custom_op

    @custom_op("fa3gen_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    with pytest.raises(UnsupportedError, match=r"fa3gen_tests\.twice\.default has no form"):
        trace(lambda s, b, h, q, k: twice(s))
