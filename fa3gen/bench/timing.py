"""Timing by CUDA events, and what the GPU was doing meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

import torch

__all__ = ["Call", "ClockSampler", "CudaTimer", "Timer", "gpu_facts", "summarize_samples"]

Call = Callable[[], object]
Timer = Callable[[Mapping[str, Call]], dict[str, float]]
"""Takes the contenders' calls by name, returns the milliseconds a call of each."""


@dataclass(frozen=True)
class CudaTimer:
    """The median time of each call, the contenders interleaved in one loop.

    Each round calls every contender once, starting one further each time so that nobody always
    runs behind the same neighbour. Before each timed call a buffer larger than the L2 cache is
    written, which evicts the inputs and gives the CPU time to queue the call.
    """

    repeats: int = 25
    warmup: int = 5
    flush_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0:
            raise ValueError(f"repeats >= 1 and warmup >= 0 (got {self.repeats}, {self.warmup})")

    def __call__(self, calls: Mapping[str, Call]) -> dict[str, float]:
        """Milliseconds a call, by contender."""
        flush = torch.empty(self.flush_bytes, dtype=torch.int8, device="cuda")
        names = list(calls)
        times: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(self.warmup + self.repeats):
            first = round_ % len(names) if names else 0
            events = {}
            for name in names[first:] + names[:first]:
                begin, end = _event(), _event()
                flush.fill_(round_ & 63)
                begin.record()
                calls[name]()
                end.record()
                events[name] = (begin, end)
            torch.cuda.synchronize()
            if round_ >= self.warmup:
                for name, (begin, end) in events.items():
                    times[name].append(begin.elapsed_time(end))
        return {name: statistics.median(samples) for name, samples in times.items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


_SAMPLED = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
}


class ClockSampler:
    """Reads SM clock, power and temperature with nvidia-smi, beside the timed calls.

    Samples are taken while the ``with`` body runs; :meth:`window` marks the parts of it that
    count, so that the references between them do not.
    """

    def __init__(self, interval_ms: int = 50) -> None:
        self._interval_ms = interval_ms
        self._process: subprocess.Popen[bytes] | None = None
        self._samples = ""
        self._windows: list[tuple[datetime, datetime]] = []

    def __enter__(self) -> ClockSampler:
        if shutil.which("nvidia-smi") and torch.cuda.is_available():
            query = "--query-gpu=" + ",".join(("timestamp", *_SAMPLED))
            command = ["nvidia-smi", *_device_selector(), query, "--format=csv,noheader,nounits"]
            # A file and not a pipe: nobody reads while the body runs, and a pipe would fill up.
            self._file = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                [*command, "-lms", str(self._interval_ms)],
                stdout=self._file,
                stderr=subprocess.DEVNULL,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._file.seek(0)
            self._samples = self._file.read().decode(errors="replace")
            self._file.close()

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """Count the samples taken while this body runs."""
        begin = datetime.now()
        try:
            yield
        finally:
            self._windows.append((begin, datetime.now()))

    def summary(self) -> dict[str, dict[str, float]]:
        """``{"sm_mhz": {"min": .., "median": .., "max": ..}, ...}`` over the counted samples.

        Empty without nvidia-smi.
        """
        return summarize_samples(self._samples, self._windows)


def summarize_samples(
    text: str, windows: Sequence[tuple[datetime, datetime]]
) -> dict[str, dict[str, float]]:
    """Statistics of nvidia-smi's lines that fall into a window.

    Incomplete lines and fields that are no number (``[N/A]``) drop out.
    """
    columns: dict[str, list[float]] = {name: [] for name in _SAMPLED.values()}
    for line in text.splitlines():
        stamp, *fields = (field.strip() for field in line.split(","))
        if len(fields) != len(_SAMPLED) or not _inside(stamp, windows):
            continue
        for name, field in zip(_SAMPLED.values(), fields, strict=True):
            with contextlib.suppress(ValueError):
                columns[name].append(float(field))
    return {
        name: {"min": min(xs), "median": statistics.median(xs), "max": max(xs)}
        for name, xs in columns.items()
        if xs
    }


def _inside(stamp: str, windows: Sequence[tuple[datetime, datetime]]) -> bool:
    """Whether nvidia-smi's local time stamp falls into a window."""
    try:
        time = datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f")
    except ValueError:
        return False
    return any(begin <= time <= end for begin, end in windows)


def gpu_facts() -> dict[str, str | None]:
    """Name, driver, and CUDA, torch and cuDNN versions; None for what is not there."""
    has_gpu = torch.cuda.is_available()
    cudnn = torch.backends.cudnn.version() if has_gpu else None  # type: ignore[no-untyped-call]
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "driver": _driver_version() if has_gpu else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "cudnn": str(cudnn) if cudnn else None,
    }


def _driver_version() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", *_device_selector(), "--query-gpu=driver_version"]
    done = subprocess.run([*command, "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.strip() or None


def _device_selector() -> list[str]:
    """nvidia-smi's ``-i`` for torch's current device, by UUID since indices may be remapped."""
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return [] if uuid is None else ["-i", f"GPU-{uuid}"]
