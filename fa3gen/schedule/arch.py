"""Hopper (sm_90a) as data: what a CTA may use."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["HOPPER", "Arch"]


@dataclass(frozen=True)
class Arch:
    """Limits of one streaming multiprocessor that a schedule must respect; their number, clock."""

    sms: int  # of an H100 SXM or H200
    clock_ghz: float  # that predictions are made for
    shared_bytes: int  # dynamic shared memory of one CTA
    reserved_bytes: int  # of shared memory, that each CTA takes beside
    registers: int  # 32-bit registers of one SM
    register_step: int  # granularity of setmaxnreg and of launch allotments
    max_registers: int  # of one thread, as setmaxnreg knows it
    min_registers: int
    compiled_registers: int  # of one thread, that ptxas fills without spilling
    named_barriers: int  # ids of one CTA; id 0 is __syncthreads
    warpgroup: int  # threads
    wgmma_rows: int  # rows of one warpgroup MMA
    product_block: int  # columns of a wgmma k block of 16-bit operands
    swizzle_bytes: int  # widest TMA and wgmma swizzle: the width of a shared-memory column chunk
    mbarrier_bytes: int
    word_alignment: int  # bytes; of buffers that are no tiles
    tile_alignment: int  # bytes; a 128-byte swizzle repeats every 8 rows

    def share(self, ctas: int) -> Arch:
        """The limits of each of so many CTAs that are resident together."""
        total = self.shared_bytes + self.reserved_bytes
        return replace(
            self,
            shared_bytes=total // ctas - self.reserved_bytes,
            registers=self.registers // ctas,
        )


HOPPER = Arch(
    sms=132,
    clock_ghz=1.755,
    shared_bytes=232_448,
    reserved_bytes=1024,
    registers=65_536,
    register_step=8,
    max_registers=256,
    min_registers=24,
    compiled_registers=248,
    named_barriers=16,
    warpgroup=128,
    wgmma_rows=64,
    product_block=16,
    swizzle_bytes=128,
    mbarrier_bytes=8,
    word_alignment=16,
    tile_alignment=1024,
)
