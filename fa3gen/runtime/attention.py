"""Attention: a compiled variant as a Python callable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._ops import OpOverload

from fa3gen.errors import InputError
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.call_inputs import InputValue, Sizes, check_inputs, gather_inputs
from fa3gen.runtime.op import NAMESPACE, RegisteredOp, register
from fa3gen.runtime.plan import Plan, plan_device, plan_sizes, unmasked

__all__ = ["Attention", "load"]

# The kernels take scale * log2(e) in fp32; these bounds keep it a normal number.
MIN_SCALE, MAX_SCALE = 2.0**-126, 2.0**126
CAPABILITY = (9, 0)  # sm_90a runs on no other
TMA_ALIGNMENT = 16  # bytes

_checked_gpus: set[int] = set()  # device indices known to have CAPABILITY

# What an eager call uses, looked up once: a call should cost the CPU little.
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality
_exclude = torch._C._dispatch_tls_set_dispatch_key_excluded
_is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled


class Attention:
    """A compiled attention variant; call it with q, k, v.

    Attributes: ``name`` (of the spec), ``spec`` (what it was compiled from, or None), ``artifact``
    (the build on disk; None when interpreted) and ``op`` (the torch op).
    """

    def __init__(
        self,
        registered: RegisteredOp,
        *,
        spec: object | Callable[[], object] = None,
        artifact: Artifact | None = None,
    ) -> None:
        """``spec`` may be a function that makes it: a kernel from the cache needs none to run."""
        meta = registered.meta
        self.name = meta.name
        self.artifact = artifact
        self._spec = spec
        self._registered = registered
        self._dtype: torch.dtype = getattr(torch, meta.dtype.torch_name)
        self._head_dim_qk = meta.head_dim_qk
        self._head_dim_v = meta.head_dim_v
        self._inputs = tuple(meta.inputs)
        self._listed = meta.listed
        self._default_scale = meta.head_dim_qk**-0.5

    @property
    def spec(self) -> Any:
        """What it was compiled from, an AttentionSpec; None for an artifact loaded by its place."""
        if callable(self._spec):
            self._spec = self._spec()
        return self._spec

    @property
    def op(self) -> OpOverload[..., Any]:
        """The torch op ``(q, k, v, scale, *inputs) -> (out, lse)``, inputs in order of their names;
        it checks less than a call does."""
        return self._registered.op

    def __repr__(self) -> str:
        where = " and ".join(
            place
            for place, there in (
                ("CUDA", self._registered.on_cuda),
                ("the interpreter", self._registered.interpreted is not None),
            )
            if there
        )
        return f"<fa3gen.Attention {self.name} ({self._registered.op}) on {where}>"

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        return_lse: bool = False,
        out: Tensor | None = None,
        plan: Plan | None = None,
        **inputs: InputValue,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of ``q`` to ``k`` and ``v``.

        Shapes: q (batch, seqlen_q, heads, head_dim_qk); k (batch, seqlen_k, heads_k, head_dim_qk);
        v (batch, seqlen_k, heads_k, head_dim_v); heads_k divides heads. Any strides are accepted.
        On a GPU, a tensor whose last dimension is contiguous and whose base and other strides are
        multiples of 16 bytes is read in place; any other is copied once.

        ``scale`` multiplies the scores and defaults to head_dim_qk ** -0.5. ``out``, if given, is
        written in place: (batch, seqlen_q, heads, head_dim_v), laid out as said above, overlapping
        no input; gradients must then be off. ``inputs`` are those that the spec declares, by name,
        in their dtypes and shapes (an axis of the call may have one element for all); a scalar may
        be a number. ``plan`` is what :meth:`plan` has made of the same inputs, for this call's
        sizes; without one it is made in the call.

        Returns out (batch, seqlen_q, heads, head_dim_v), with ``return_lse`` also lse (batch,
        heads, seqlen_q): the natural logarithm of each row's sum of exponentials, fp32. A row
        without keys gives 0 and -inf. Raises InputError, naming argument, rule and value, before
        any launch.
        """
        scale = self._default_scale if scale is None else _checked_scale(scale)
        result: tuple[Tensor, Tensor]
        more: tuple[Tensor | None, ...] = ()
        if self._inputs or inputs or self._listed or plan is not None:
            more = gather_inputs(self._inputs, inputs, q.device)
            if plan is not None:
                plan.check(q, k)
            if self._listed:
                more = (*more, None if plan is None else plan.lists)
        if out is not None:
            result = self._forward_out(q, k, v, scale, more, out)
        elif not (
            type(q) is type(k) is type(v) is Tensor
            and k.is_cuda
            and v.is_cuda
            and q.get_device() in _checked_gpus
            and not _is_dynamo_compiling()
        ):
            self._check_inputs(q, k, v, more)
            result = self._forward(q, k, v, scale, more)
        else:  # eager, on a GPU: the op checks all that _check_inputs does, 2 us sooner
            try:
                if _is_excluded(_AUTOGRAD) or (_is_grad_enabled() and _needs_grad(q, k, v, more)):
                    result = self._registered.launch(q, k, v, scale, *more)
                else:
                    # The op's autograd rule is Python and would only pass the call on, for 4 us.
                    _exclude(_AUTOGRAD, True)
                    try:
                        result = self._registered.launch(q, k, v, scale, *more)
                    finally:
                        _exclude(_AUTOGRAD, False)
            except RuntimeError as error:
                self._explain(error, q, k, v, more)
        return result if return_lse else result[0]

    def plan(
        self,
        *,
        seqlen_q: int | None = None,
        seqlen_k: int | None = None,
        batch: int | None = None,
        heads: int | None = None,
        heads_k: int | None = None,
        device: torch.device | str | None = None,
        **inputs: InputValue,
    ) -> Plan:
        """Which KV tiles calls with these inputs visit, to be made once for many of them.

        Sizes that the inputs have need not be given; ``seqlen_q`` defaults to ``seqlen_k``,
        ``batch``, ``heads`` and ``heads_k`` to 1 where the mask does not tell them apart, and
        ``device`` to that of the inputs. A plan depends on the inputs that the mask names, and only
        these must be given: make another after they have changed. Where the mask's formula alone
        tells the tiles, it holds nothing.

        Raises InputError, naming argument, rule and value.
        """
        given = {"b": batch, "row": seqlen_q, "h": heads, "k": seqlen_k, "hk": heads_k}
        place = plan_device(inputs, device)
        tensors = gather_inputs(self._inputs, {**unmasked(self._inputs, place), **inputs}, place)
        sizes, known = plan_sizes(self._inputs, tensors, given)
        check_inputs(self._inputs, tensors, sizes, place)
        if self._registered.plan is None:
            return Plan(sizes, known, None)
        self._check_device(place)
        like = torch.empty(1, device=place)
        lists = self._registered.plan(like, *sizes.in_order, *tensors)
        return Plan(sizes, known, lists)

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, more: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor]:
        op = self._registered.op
        result: tuple[Tensor, Tensor]
        if torch.compiler.is_compiling() or _recorded(q, k, v, more):
            result = op(q, k, v, scale, *more)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                result = op(q, k, v, scale, *more)
        return result

    def _forward_out(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        more: tuple[Tensor | None, ...],
        out: Tensor,
    ) -> tuple[Tensor, Tensor]:
        self._check_inputs(q, k, v, more)
        self._check_out((q, k, v), more, out)
        batch, seqlen_q, heads, _ = q.shape
        lse = q.new_empty((batch, heads, seqlen_q), dtype=torch.float32)
        self._registered.out(q, k, v, scale, *more, out, lse)
        if not torch.compiler.is_compiling() and not out.is_inference():
            torch.autograd.graph.increment_version(out)  # as torch's own in-place ops do
        return out, lse

    def _explain(
        self, error: RuntimeError, q: Tensor, k: Tensor, v: Tensor, more: tuple[Tensor | None, ...]
    ) -> NoReturn:
        """Raises what the op's error means: InputError for a broken rule, else the error itself."""
        try:
            self._check_inputs(q, k, v, more)
        except InputError as broken:
            raise broken from None
        op = f"{NAMESPACE}::{self._registered.meta.op_name}: "
        _, found, rule = str(error).partition(op)
        if found:  # a rule that the op alone checks
            raise InputError(rule.splitlines()[0]) from None
        raise error

    def _check_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, more: tuple[Tensor | None, ...]
    ) -> None:
        self._check_tensor("q", q, self._head_dim_qk)
        self._check_tensor("k", k, self._head_dim_qk)
        self._check_tensor("v", v, self._head_dim_v)
        device = q.device
        if k.device != device or v.device != device:
            raise InputError(
                f"k, v: must be on the device of q, {device} (got {k.device}, {v.device})"
            )
        self._check_device(device)
        batch, _, heads, _ = q.shape
        batch_k, seqlen_k, heads_k, _ = k.shape
        batch_v, seqlen_v, heads_v, _ = v.shape
        if batch_k != batch or batch_v != batch:
            raise InputError(
                f"k, v: batch must be that of q, {batch} (got {batch_k} and {batch_v})"
            )
        if seqlen_v != seqlen_k:
            raise InputError(f"v: seqlen must be that of k, {seqlen_k} (got {seqlen_v})")
        if heads_v != heads_k:
            raise InputError(f"v: heads must be those of k, {heads_k} (got {heads_v})")
        if heads % heads_k != 0 if heads_k else heads != 0:
            raise InputError(f"k: heads must divide those of q, {heads} (got {heads_k})")
        check_inputs(self._inputs, more, Sizes.of(q, k), q.device)

    def _check_tensor(self, name: str, tensor: Tensor, head_dim: int) -> None:
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: must be a torch.Tensor (got {type(tensor).__name__})")
        if tensor.dtype != self._dtype:
            raise InputError(f"{name}: dtype must be {self._dtype} (got {tensor.dtype})")
        if tensor.dim() != 4:
            raise InputError(
                f"{name}: rank must be 4, (batch, seqlen, heads, head_dim) "
                f"(got shape {tuple(tensor.shape)})"
            )
        if tensor.shape[3] != head_dim:
            raise InputError(f"{name}: head_dim must be {head_dim} (got {tensor.shape[3]})")

    def _check_device(self, device: torch.device) -> None:
        if device.type == "cuda":
            if device.index not in _checked_gpus and not torch.compiler.is_compiling():
                _check_gpu(device)
            if not self._registered.on_cuda:
                raise InputError(
                    f"q: must be on the CPU, as {self.name} is interpreted (got {device}); "
                    "compile it where torch sees a Hopper GPU, or load a built artifact"
                )
        elif device.type == "cpu":
            if self._registered.interpreted is None:
                raise InputError(
                    f"q: must be on a CUDA device, as {self.name} was loaded without the "
                    "interpreter (got cpu); to interpret, compile with CUDA_VISIBLE_DEVICES=''"
                )
        elif device.type != "meta":
            raise InputError(f"q: must be on a CUDA device (got {device})")

    def _check_out(
        self, qkv: tuple[Tensor, Tensor, Tensor], more: tuple[Tensor | None, ...], out: Tensor
    ) -> None:
        q, k, v = qkv
        self._check_tensor("out", out, self._head_dim_v)
        if out.device != q.device:
            raise InputError(f"out: must be on the device of q, {q.device} (got {out.device})")
        if out.shape[:3] != q.shape[:3]:
            expected = (*q.shape[:3], self._head_dim_v)
            raise InputError(f"out: shape must be {expected} (got {tuple(out.shape)})")
        if _recorded(q, k, v, more) or (torch.is_grad_enabled() and out.requires_grad):
            raise InputError(
                "out: must not be given where gradients are recorded (a tensor requires grad); "
                "leave it out, or call under torch.no_grad()"
            )
        _check_out_layout(out)


def load(directory: str | Path) -> Attention:
    """The attention op of an artifact made by ``fa3gen build``; needs torch alone.

    Raises InputError where the directory holds no artifact, or a damaged one.
    """
    artifact = Artifact.read(directory)
    return Attention(register(artifact), artifact=artifact)


def _recorded(q: Tensor, k: Tensor, v: Tensor, more: tuple[Tensor | None, ...]) -> bool:
    """Whether a call is recorded for a backward."""
    return torch.is_grad_enabled() and _needs_grad(q, k, v, more)


def _needs_grad(q: Tensor, k: Tensor, v: Tensor, more: tuple[Tensor | None, ...]) -> bool:
    if q.requires_grad or k.requires_grad or v.requires_grad:
        return True
    return bool(more) and any(one is not None and one.requires_grad for one in more)


def _checked_scale(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise InputError(f"scale: must be a number (got {type(scale).__name__})")
    if not MIN_SCALE <= scale <= MAX_SCALE:  # false for NaN as well
        raise InputError(
            f"scale: must be finite and positive, between 2**-126 and 2**126 (got {scale})"
        )
    return float(scale)


def _check_gpu(device: torch.device) -> None:
    """Raises InputError unless the GPU can run sm_90a code."""
    if not torch.cuda.is_available():
        return  # a fake tensor: nothing will be launched
    found = torch.cuda.get_device_capability(device)
    if found != CAPABILITY:
        raise InputError(
            f"q: must be on a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, Hopper "
            f"(got {device}, {torch.cuda.get_device_name(device)}, {found[0]}.{found[1]}); "
            "move the tensors to such a GPU, or to the CPU for the interpreter"
        )
    _checked_gpus.add(device.index)


def _check_out_layout(out: Tensor) -> None:
    """What TMA needs in order to write it, and no element twice."""
    strides = out.stride()
    if strides[3] != 1:
        raise InputError(f"out: last dimension must be contiguous (got strides {strides})")
    for size, stride in zip(out.shape[:3], strides[:3], strict=True):
        if size > 1 and (stride == 0 or stride * out.element_size() % TMA_ALIGNMENT != 0):
            raise InputError(
                f"out: strides must be multiples of {TMA_ALIGNMENT} bytes and not 0 "
                f"(got {strides} elements of {out.element_size()} bytes)"
            )
    if not torch.compiler.is_compiling() and out.device.type == "cuda":
        address = out.data_ptr()
        if address % TMA_ALIGNMENT != 0:
            raise InputError(
                f"out: base must be a multiple of {TMA_ALIGNMENT} bytes (got {address:#x})"
            )
