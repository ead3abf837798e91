"""From a spec to a proved Program."""

from fa3gen.schedule.passes import make_plan, make_program, make_schedule
from fa3gen.schedule.program import Program
from fa3gen.schedule.schedule import Schedule
from fa3gen.schedule.verify import Proof, verify

__all__ = ["Program", "Proof", "Schedule", "make_plan", "make_program", "make_schedule", "verify"]
