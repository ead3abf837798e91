"""Plan: the KV tiles that calls of a variant visit, made once for many calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fa3gen.errors import InputError
from fa3gen.inputs import InputMeta
from fa3gen.runtime.call_inputs import InputValue, Sizes

__all__ = ["Plan", "plan_device", "plan_sizes", "unmasked"]

_NAMES = {"b": "batch", "h": "heads", "hk": "heads_k", "row": "seqlen_q", "k": "seqlen_k"}


@dataclass(frozen=True)
class Plan:
    """What :meth:`fa3gen.Attention.plan` makes. ``lists``: int32, for calls of these sizes, as far
    as they were ``known``; None where the mask's formula alone tells the tiles."""

    sizes: Sizes
    known: frozenset[str]  # axes
    lists: Tensor | None

    def check(self, q: Tensor, k: Tensor) -> None:
        """Raises InputError unless it was made for a call's sizes and device."""
        if self.lists is None:
            return
        call = Sizes.of(q, k)
        for axis, name in _NAMES.items():
            if axis in self.known and call.axis(axis) != self.sizes.axis(axis):
                raise InputError(
                    f"plan: {name} must be {self.sizes.axis(axis)}, that it was made for "
                    f"(got {call.axis(axis)})"
                )
        if self.lists.device != q.device:
            raise InputError(
                f"plan: must be on the device of q, {q.device} (got {self.lists.device})"
            )


def plan_device(
    inputs: Mapping[str, InputValue], device: torch.device | str | None
) -> torch.device:
    """Where a plan is made: as asked, or where its inputs are."""
    if device is not None:
        place = torch.device(device)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        return place
    found = {one.device for one in inputs.values() if isinstance(one, Tensor)}
    if len(found) != 1:
        raise InputError("device: must be given where the inputs are not on one device")
    return found.pop()


def unmasked(metas: Sequence[InputMeta], device: torch.device) -> dict[str, Tensor]:
    """Something for the inputs that the mask does not name: of one element along axes of calls."""

    def zeros(meta: InputMeta) -> Tensor:
        shape = [axis if isinstance(axis, int) else 1 for axis in meta.shape]
        return torch.zeros(shape, dtype=getattr(torch, meta.dtype.torch_name), device=device)

    return {meta.name: zeros(meta) for meta in metas if not meta.masks}


def plan_sizes(
    metas: Sequence[InputMeta], tensors: Sequence[Tensor], given: Mapping[str, int | None]
) -> tuple[Sizes, frozenset[str]]:
    """The sizes of a plan, as given, else those that the inputs have, and which axes these are; see
    ``Attention.plan``."""
    known = {axis: size for axis, size in given.items() if size is not None}
    for meta, tensor in zip(metas, tensors, strict=True):
        for axis, size in zip(meta.shape, tensor.shape, strict=False):
            if isinstance(axis, str) and size != 1:
                known.setdefault(axis, size)
    if "k" not in known:
        raise InputError("seqlen_k: must be given, as no input has it")
    defaults = {"b": 1, "hk": known.get("h", 1), "h": known.get("hk", 1), "row": known["k"]}
    return Sizes(**{**defaults, **known}), frozenset({"row", *known})
