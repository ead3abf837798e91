"""The torch ops of built and interpreted kernels, one pair a variant in the namespace ``fa3gen``.

::

    <op>(Tensor q, Tensor k, Tensor v, float scale, INPUTS) -> (Tensor, Tensor)  # out, lse
    <op>_out(Tensor q, Tensor k, Tensor v, float scale, INPUTS,
             Tensor(a!) out, Tensor(b!) lse) -> ()

INPUTS are the tensors that the spec declares, in order of their names; where a kernel lists KV
tiles, ``Tensor? plan`` too, which a third op makes::

    <op>_plan(Tensor like, int batch, int heads, int heads_k, int seqlen_q, int seqlen_k, INPUTS)

A built library defines its pair itself, with CUDA implementations. Without one (no GPU, no
compiler) the pair is defined here, and implemented on the CPU by the interpreter. torch aborts the
process when an op is defined twice, so everything goes through one registry.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload

from fa3gen.dtypes import DType
from fa3gen.errors import InputError, UnsupportedError
from fa3gen.inputs import InputMeta, op_schemas
from fa3gen.runtime.artifact import Artifact

__all__ = ["Interpreted", "OpMeta", "RegisteredOp", "register", "register_interpreted"]

NAMESPACE = "fa3gen"
_ops: Any = torch.ops  # torch declares no types for it

Interpreted = Callable[..., tuple[Tensor, Tensor]]  # (q, k, v, scale, *inputs)


class OpMeta(Protocol):
    """What an op must know of its variant. Artifact and codegen's VariantMeta are such."""

    @property
    def name(self) -> str: ...
    @property
    def op_name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def head_dim_qk(self) -> int: ...
    @property
    def head_dim_v(self) -> int: ...
    @property
    def inputs(self) -> Sequence[InputMeta]: ...
    @property
    def listed(self) -> bool: ...


class RegisteredOp:
    """A variant's pair of ops as they are now.

    Attributes: ``op`` and ``out`` (OpOverload), ``launch`` (``op`` without its Python frame, for
    eager calls), ``on_cuda`` (a library is loaded), ``interpreted`` (the CPU implementation, or
    None). They change when the other kind of implementation is added, so keep this object rather
    than its ops.
    """

    def __init__(self, meta: OpMeta) -> None:
        self.meta = meta
        self.on_cuda = False
        self.interpreted: Interpreted | None = None
        self.op: OpOverload[..., Any]
        self.out: OpOverload[..., Any]
        self.launch: Callable[..., tuple[Tensor, Tensor]]
        self.plan: OpOverload[..., Any] | None = None  # makes lists of KV tiles
        self._library: Any = None  # torch's owner of what is written in Python

    def attach(self, *, define: bool) -> None:
        """Gives the pair all that is written in Python; ``define`` also its schemas."""
        name = self.meta.op_name
        library = _new_library()
        if define:
            for schema in op_schemas(name, self.meta.inputs, self.meta.listed):
                library.define(schema)
        self.op = getattr(_ops.fa3gen, name).default
        self.out = getattr(_ops.fa3gen, f"{name}_out").default
        self.launch = self.op._op
        self.plan = getattr(_ops.fa3gen, f"{name}_plan").default if self.meta.listed else None
        _register_shapes(library, self.meta)
        _register_autograd(library, self.meta)
        _register_flops(name, self.meta)
        self._library = library

    def interpret(self, function: Interpreted) -> None:
        """Implements the pair on CPU tensors by ``function``, in place of an earlier one."""
        first = self.interpreted is None
        self.interpreted = function
        if first:
            self._implement_on_cpu()

    def load(self, artifact: Artifact) -> None:
        """Loads the library, which defines the pair and implements it on CUDA tensors.

        Raises InputError where it cannot be loaded; the pair is then what it was.
        """
        name = self.meta.op_name
        defined = self._library is not None
        if defined:  # here; the library is about to define it
            _forget_flops(name)
            self._library._destroy()
            self._library = None  # now: its finalizer forgets torch.ops' packets once more
        try:
            _ops.load_library(str(artifact.library_path.resolve()))
            self.on_cuda = True
        except OSError as error:
            raise InputError(
                f"{artifact.library_path}: cannot be loaded ({error.__cause__ or error}); "
                "build it again"
            ) from error
        finally:
            if self.on_cuda or defined:
                self.attach(define=not self.on_cuda)
            if self.interpreted is not None:
                self._implement_on_cpu()

    def _implement_on_cpu(self) -> None:
        def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
            assert self.interpreted is not None
            out, lse = self.interpreted(*arguments)
            return out.contiguous(), lse.contiguous()

        def forward_out(*arguments: Any) -> None:
            *given, out, lse = arguments
            result, result_lse = forward(*given)
            out.copy_(result)
            lse.copy_(result_lse)

        assert self._library is not None
        self._library.impl(self.meta.op_name, forward, "CPU")
        self._library.impl(f"{self.meta.op_name}_out", forward_out, "CPU")
        if self.meta.listed:
            self._library.impl(f"{self.meta.op_name}_plan", self._interpret_plan, "CPU")

    def _interpret_plan(self, like: Tensor, *arguments: Any) -> Tensor:
        assert self.interpreted is not None
        make: Callable[..., Tensor] = self.interpreted.plan  # type: ignore[attr-defined]
        return make(*arguments)


def _new_library() -> Any:
    """Owner of registrations in our namespace; they end with it."""
    make: Any = torch.library.Library
    return make(NAMESPACE, "FRAGMENT")


_registry: dict[str, RegisteredOp] = {}
_lock = threading.RLock()


def register(artifact: Artifact) -> RegisteredOp:
    """Loads the artifact's library, once: a second artifact of the same op name is not opened.

    Raises InputError where the library is not the one that the manifest describes, or is gone.
    """
    with _lock:
        known = _registry.get(artifact.op_name)
        if known is not None and known.on_cuda:
            return known
        # By its path, so that debuggers and profilers can name it. In the cache only this user can
        # write (fa3gen.jit.trust); elsewhere who can swap the library can edit its hash as well.
        artifact.verify_op()
        registered = known or RegisteredOp(artifact)
        registered.load(artifact)
        _registry[artifact.op_name] = registered
        return registered


def register_interpreted(meta: OpMeta, function: Interpreted) -> RegisteredOp:
    """Defines the op of ``meta``, if no library has, and implements it on CPU tensors.

    ``function(q, k, v, scale, *inputs)`` returns new tensors (out, lse) of any strides: out (batch,
    seqlen_q, heads, head_dim_v) in q's dtype, lse (batch, heads, seqlen_q) fp32. Of a variant whose
    KV tiles are listed it also takes a plan, or None, and has a method ``plan(*sizes, *inputs)``.
    """
    with _lock:
        registered = _registry.get(meta.op_name)
        if registered is None:
            registered = RegisteredOp(meta)
            registered.attach(define=True)
            _registry[meta.op_name] = registered
        registered.interpret(function)
        return registered


def _register_shapes(library: Any, meta: OpMeta) -> None:
    """Shapes, dtypes and strides of the results, for tracing; sizes may be symbolic."""
    head_dim_v = meta.head_dim_v

    def forward(
        q: Tensor, k: Tensor, v: Tensor, scale: float, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        batch, seqlen_q, heads, _ = q.shape
        out = q.new_empty((batch, seqlen_q, heads, head_dim_v))
        return out, q.new_empty((batch, heads, seqlen_q), dtype=torch.float32)

    def forward_out(*arguments: Any) -> None:
        return None

    name = f"{NAMESPACE}::{meta.op_name}"
    torch.library.register_fake(name, forward, lib=library)
    torch.library.register_fake(f"{name}_out", forward_out, lib=library)


def _register_autograd(library: Any, meta: OpMeta) -> None:
    """Lets the forward run on inputs that require gradients; the backward raises.

    It raises from inside an op of its own: tracers run a backward formula to record it, also where
    nobody will call the backward.
    """
    _define_no_backward()
    name = meta.name

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.shapes = [list(tensor.shape) for tensor in inputs[:3]]
        ctx.count = len(inputs) - 4

    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = _ops.fa3gen.no_backward(grad_out, *ctx.shapes, name)
        return q, k, v, None, *([None] * ctx.count)

    torch.library.register_autograd(
        f"{NAMESPACE}::{meta.op_name}", backward, setup_context=setup_context, lib=library
    )


_shared: list[Any] = []  # definitions that live as long as the process


def _define_no_backward() -> None:
    if _shared:
        return
    library = _new_library()
    library.define(
        "no_backward(Tensor grad, SymInt[] q, SymInt[] k, SymInt[] v, str name)"
        " -> (Tensor, Tensor, Tensor)"
    )

    def refuse(
        grad: Tensor, q: Sequence[int], k: Sequence[int], v: Sequence[int], name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        raise UnsupportedError(
            f"{name} was compiled for the forward pass alone, and has no backward; "
            "run it under torch.no_grad(), or detach its result"
        )

    def shapes(
        grad: Tensor, q: Sequence[int], k: Sequence[int], v: Sequence[int], name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        return grad.new_empty(q), grad.new_empty(k), grad.new_empty(v)

    library.impl("no_backward", refuse, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::no_backward", shapes, lib=library)
    _shared.append(library)


# --- floating-point operations --------------------------------------------------------------------

_FLOP_COUNTER = "torch.utils.flop_counter"  # it imports triton, so only who counts imports it
_uncounted: dict[str, OpMeta] = {}  # ops whose formula waits for that


def _register_flops(name: str, meta: OpMeta) -> None:
    """Floating-point operations of the two GEMMs, as if no key were masked."""
    if (counter := sys.modules.get(_FLOP_COUNTER)) is not None:
        _add_formula(counter, name, meta)
        return
    if not _uncounted:
        sys.meta_path.insert(0, _CounterImport())
    _uncounted[name] = meta


def _forget_flops(name: str) -> None:
    _uncounted.pop(name, None)
    if (counter := sys.modules.get(_FLOP_COUNTER)) is not None:
        for packet in (name, f"{name}_out"):
            counter.flop_registry.pop(getattr(_ops.fa3gen, packet), None)


def _add_formula(counter: ModuleType, name: str, meta: OpMeta) -> None:
    row_flops = 2 * (meta.head_dim_qk + meta.head_dim_v)

    def count(
        q_shape: Sequence[int], k_shape: Sequence[int], *args: Any, out_shape: Any = None
    ) -> int:
        batch, seqlen_q, heads, _ = q_shape
        return row_flops * batch * heads * seqlen_q * k_shape[1]

    packets = [getattr(_ops.fa3gen, name), getattr(_ops.fa3gen, f"{name}_out")]
    counter.register_flop_formula(packets)(count)


class _CounterImport:
    """Adds the formulas that wait once someone imports torch's FLOP counter."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Finds nothing itself; for the counter, wraps the loader that the others find."""
        if name != _FLOP_COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for op_name, meta in _uncounted.items():
                _add_formula(module, op_name, meta)
            _uncounted.clear()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
