"""FlexAttention (arXiv 2412.05496) as a peer of variants: their callables, written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from fa3gen.bench.contenders import Run
from fa3gen.bench.variants_plan import TREE, Cell, Inputs

__all__ = ["MODS", "prepare_flex"]

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Mods = tuple["ScoreMod | None", "MaskMod | None"]  # evaluated at run time on Python 3.10


def _alibi(inputs: Inputs, offset: int) -> Mods:
    slopes = inputs["slopes"]

    def penalise(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + slopes[h] * (k - (q + offset))

    return penalise, _behind(offset)


def _alibi_full(inputs: Inputs, offset: int) -> Mods:
    slopes = inputs["slopes"]

    def penalise(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score - slopes[h] * (q + offset - k).abs()

    return penalise, None


def _cap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return 50 * torch.tanh(score / 50)


def _relative(inputs: Inputs, offset: int) -> Mods:
    rel = inputs["rel"]

    def add(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + rel[h, (k - (q + offset) + 127).clamp(0, 254)]

    return add, None


def _bias(inputs: Inputs, offset: int) -> Mods:
    bias = inputs["bias"]

    def add(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[b, h, q, k]

    return add, None


def _document(inputs: Inputs, offset: int) -> Mods:
    doc = inputs["doc"]

    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # Queries before the first key see none; their index is held inside of the table.
        same = doc[b, (q + offset).clamp(min=0)] == doc[b, k]
        return same & (k <= q + offset)

    return None, keep


def _prefix(inputs: Inputs, offset: int) -> Mods:
    length = inputs["prefix_length"]

    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q + offset) | (k < length[b])

    return None, keep


def _window(left: int) -> Callable[[Inputs, int], Mods]:
    def keep_window(inputs: Inputs, offset: int) -> Mods:
        def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q + offset) & (k >= q + offset - left)

        return None, keep

    return keep_window


def _chunked(inputs: Inputs, offset: int) -> Mods:
    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q + offset) & (_floor(q + offset, 8192) == _floor(k, 8192))

    return None, keep


def _neighbourhood(inputs: Inputs, offset: int) -> Mods:
    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + offset
        lines = (_floor(q, 32) - _floor(k, 32)).abs() <= 6
        return lines & ((q % 32 - k % 32).abs() <= 6)

    return None, keep


def _dilated(inputs: Inputs, offset: int) -> Mods:
    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        back = q + offset - k
        return (back >= 0) & (back <= 1023) & (back % 4 == 0)

    return None, keep


def _tree(inputs: Inputs, offset: int) -> Mods:
    tree = inputs["tree"]

    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < offset) | (tree[q, (k - offset).clamp(0, TREE - 1)] > 0)

    return None, keep


def _behind(offset: int) -> MaskMod:
    """Causal, aligned to the last key."""

    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q + offset

    return keep


def _floor(x: Tensor, size: int) -> Tensor:
    return torch.div(x, size, rounding_mode="floor")


MODS: dict[str, Callable[[Inputs, int], Mods]] = {  # of inputs and seqlen_k - seqlen_q
    "alibi": _alibi,
    "alibi_full": _alibi_full,
    "softcap": lambda inputs, offset: (_cap, _behind(offset)),
    "softcap_full": lambda inputs, offset: (_cap, None),
    "relative_bias": _relative,
    "full_bias": _bias,
    "document_causal": _document,
    "prefix_lm": _prefix,
    "window": _window(1023),
    "sink_window": _window(127),
    "chunked": _chunked,
    "neighbourhood": _neighbourhood,
    "dilated": _dilated,
    "tree": _tree,
}
_OF_BATCH = ("document_causal", "prefix_lm")  # whose masks differ between sequences


def prepare_flex(
    cell: Cell, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs, *, compiled: bool = True
) -> Run:
    """The call to time: the block mask is made once, outside of it, and the kernel when it is first
    called."""
    attend: Any = torch.compile(_attend, dynamic=False) if compiled else _attend
    problem, name = cell.problem, cell.variant.name
    lengths = (problem.seqlen_q, problem.seqlen_k)
    modify, keep = MODS[name](inputs, lengths[1] - lengths[0])
    block_mask = None
    if keep is not None:
        batch = problem.batch if name in _OF_BATCH else None
        block_mask = create_block_mask(keep, batch, None, *lengths, device=str(q.device))
    sink = inputs[cell.variant.formula.sink] if cell.variant.formula.sink else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))

    def run() -> Tensor:
        out: Tensor = attend(q, k, v, modify, block_mask, problem.scale, sink)
        return out.transpose(1, 2)

    return run


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modify: ScoreMod | None,
    block_mask: Any,
    scale: float,
    sink: Tensor | None,
) -> Tensor:
    """(batch, heads, seqlen, dim) tensors. A sink takes its share of the softmax afterwards, by the
    LSE, as FlexAttention has none."""
    grouped = q.shape[1] != k.shape[1]
    how: Any = {"score_mod": modify, "block_mask": block_mask, "scale": scale}
    if sink is None:
        out: Tensor = flex_attention(q, k, v, enable_gqa=grouped, **how)
        return out
    out, aux = flex_attention(q, k, v, enable_gqa=grouped, return_aux=AuxRequest(lse=True), **how)
    share = torch.sigmoid(aux.lse - sink[:, None].float())
    return (out * share[..., None]).to(q.dtype)
