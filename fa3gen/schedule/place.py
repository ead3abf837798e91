"""Pass 3: role, pipeline stage and slot of every loop operation.

::

    overlap 1      QK(j) mask(j) row max(j) rescale(j) exp, row sum, convert(j) PV(j)
    overlap 2      QK(j) PV(j-1) mask(j) row max(j) rescale(j) exp, row sum, convert(j)

    overlap 3      PV(j-2) QK(j) mask(j-1) row max(j-1) rescale(j-1) exp, row sum, convert(j-1)

With overlap 2 the second product runs one iteration late (stage 1), so the tensor core works on it
while the softmax of the next tile occupies the other units (FlashAttention-3, section 3.2). With
overlap 3 the softmax also runs one iteration late, beside both products. The producer loads a tile
in the stage of the product that uses it, a bias in that of the product it is added to.

Loads come in the order in which their stages become free, else the wait for one would stand for
that for the next: the bias of a tile after the V of a tile before, but with overlap 1 before the V
of its own.

O is rescaled right after the maxima are known: by then its product, issued beside the one that the
maxima waited for, has as good as retired, and the multiplications and the conversion of P fill the
gaps between exponentials. The solver's answers agree in the stages and in the order of products and
softmax (``loop``), but put the rescaling of a tile in front of its P V, one iteration later.
"""

from __future__ import annotations

from dataclasses import replace

from fa3gen.ir.ops import GemmPV, GemmQK, LoadBias, LoadK, LoadV, Scope
from fa3gen.schedule.schedule import Placement, RoleName, Schedule

__all__ = ["place"]


def place(schedule: Schedule) -> Schedule:
    """Give each loop operation its role, stage and slot."""
    loop = [op for op in schedule.graph.ops if op.scope is Scope.LOOP]
    loads = [op for op in loop if isinstance(op, (LoadK, LoadV, LoadBias))]
    late = schedule.tiling.overlap - 1  # stage of PV
    stage = {op.name: max(late - 1, 0) for op in loop}  # of the softmax
    stage |= {op.name: 0 for op in loop if isinstance(op, (GemmQK, LoadK, LoadBias))}
    stage |= {op.name: late for op in loop if isinstance(op, (GemmPV, LoadV))}
    consumer = [op for op in loop if op not in loads]
    if not late:
        loads.sort(key=lambda op: isinstance(op, LoadV))
    else:
        products = [op for op in consumer if isinstance(op, (GemmQK, GemmPV))]
        softmax = [op for op in consumer if op not in products]
        consumer = (products if late == 1 else products[::-1]) + softmax
    placed = [
        Placement(op.name, role, stage[op.name], slot)
        for role, ops in ((RoleName.PRODUCER, loads), (RoleName.CONSUMER, consumer))
        for slot, op in enumerate(ops)
    ]
    return replace(schedule, placements=tuple(placed))
