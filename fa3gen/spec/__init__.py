"""Specs: what the user asked for, checked, and its formulas as sympy expressions."""

from fa3gen.spec.load import load_spec
from fa3gen.spec.model import AttentionSpec, HeadDim, InputSpec, ScheduleKnobs, TileKnob

__all__ = ["AttentionSpec", "HeadDim", "InputSpec", "ScheduleKnobs", "TileKnob", "load_spec"]
