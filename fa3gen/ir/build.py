"""AttentionSpec and a tile size to the OpGraph of the forward pass."""

from __future__ import annotations

import sympy

from fa3gen.dtypes import DType
from fa3gen.errors import UnsupportedError
from fa3gen.ir.bias import kernel_score
from fa3gen.ir.graph import Dependence, OpGraph
from fa3gen.ir.ops import (
    AddBias,
    ConvertP,
    Exp,
    GemmPV,
    GemmQK,
    LoadBias,
    LoadK,
    LoadQ,
    LoadV,
    Mask,
    Normalize,
    Rescale,
    RowMax,
    RowSum,
    Scope,
    ScoreMod,
    Space,
    StoreLSE,
    StoreO,
    Tile,
    TileOp,
)
from fa3gen.ir.verify import check_graph
from fa3gen.spec import AttentionSpec
from fa3gen.spec.symbols import k as K
from fa3gen.spec.symbols import seqlen_k as SEQLEN_K

__all__ = ["build_forward", "check_supported"]


def check_supported(spec: AttentionSpec) -> None:
    """Raise UnsupportedError for what a spec may say but the forward graph cannot express yet."""
    if spec.dtype not in (DType.BF16, DType.FP16):
        raise UnsupportedError(f"dtype: {spec.dtype.value} is not compiled yet; use bf16 or fp16")
    if tuple(spec.passes) != ("forward",):
        raise UnsupportedError("passes: only [forward] is compiled yet")


def build_forward(spec: AttentionSpec, block_m: int, block_n: int) -> OpGraph:
    """The forward pass of ``block_m`` query rows over KV tiles of ``block_n`` keys."""
    check_supported(spec)
    dtype, fp32 = spec.dtype, DType.FP32
    dim_qk, dim_v = spec.head_dim.qk, spec.head_dim.v
    shared, registers = Space.SHARED, Space.REGISTER

    q_global = Tile("Q_global", block_m, dim_qk, dtype, Space.GLOBAL)
    k_global = Tile("K_global", block_n, dim_qk, dtype, Space.GLOBAL)
    v_global = Tile("V_global", block_n, dim_v, dtype, Space.GLOBAL)
    o_global = Tile("O_global", block_m, dim_v, dtype, Space.GLOBAL)
    lse_global = Tile("LSE_global", block_m, 1, fp32, Space.GLOBAL)
    q = Tile("Q", block_m, dim_qk, dtype, shared)
    k = Tile("K", block_n, dim_qk, dtype, shared)
    v = Tile("V", block_n, dim_v, dtype, shared)
    s = Tile("S", block_m, block_n, fp32, registers)
    p = Tile("P", block_m, block_n, dtype, registers)
    o = Tile("O", block_m, dim_v, fp32, registers)
    row_max, row_sum, alpha, lse = (
        Tile(name, block_m, 1, fp32, registers) for name in ("row_max", "row_sum", "alpha", "lse")
    )
    keep = sympy.And(spec.mask_expr, sympy.Lt(K, SEQLEN_K))

    form, bias = kernel_score(spec)
    loads: tuple[TileOp, ...] = ()
    adds: tuple[TileOp, ...] = ()
    if bias:
        tiles = [
            Tile(name, block_m, block_n, bias.meta.dtype, space)
            for name, space in (("Bias_global", Space.GLOBAL), ("Bias", shared))
        ]
        loads, adds = (LoadBias((tiles[0],), (tiles[1],)),), (AddBias((s, tiles[1]), (s,)),)
    ops: tuple[TileOp, ...] = (
        LoadQ((q_global,), (q,)),
        LoadK((k_global,), (k,)),
        LoadV((v_global,), (v,)),
        *loads,
        GemmQK((q, k), (s,)),
        *adds,
        *(() if form.plain else (ScoreMod((s,), (s,), form),)),
        Mask((s,), (s,), keep),
        RowMax((s, row_max), (row_max, alpha)),
        Rescale((o, alpha), (o,)),
        Exp((s, row_max), (s,)),
        RowSum((s, row_sum, alpha), (row_sum,)),
        ConvertP((s,), (p,)),
        GemmPV((p, v, o), (o,)),
        Normalize((o, row_sum, row_max), (o, lse), spec.sink),
        StoreLSE((lse,), (lse_global,)),
        StoreO((o,), (o_global,)),
    )
    return check_graph(OpGraph(ops, _dependences(ops)))


def _dependences(ops: tuple[TileOp, ...]) -> tuple[Dependence, ...]:
    """Def-use chains: a loop value read before this tile's write comes from the tile before."""
    found: list[Dependence] = []
    for index, op in enumerate(ops):
        for tile in op.reads:
            writers = [i for i, other in enumerate(ops) if tile in other.writes]
            before = [i for i in writers if i < index]
            if before:
                found.append(Dependence(ops[before[-1]].name, op.name, tile.name, 0))
            carried = [i for i in writers if i >= index and ops[i].scope is Scope.LOOP]
            if carried and not before:
                found.append(Dependence(ops[carried[-1]].name, op.name, tile.name, 1))
    return tuple(found)
