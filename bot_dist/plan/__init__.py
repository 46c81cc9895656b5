"""What a transfer does, decided before anything runs: pure, frozen, printable. No tensors, no Ray, no storage."""

from bot_dist.plan.make import make_plan
from bot_dist.plan.summary import ModuleRow, PlanSummary, step_bytes, summarise
from bot_dist.plan.transfer import AxisPlan, ModulePlan, Step, TransferPlan

__all__ = [
    "AxisPlan",
    "ModulePlan",
    "ModuleRow",
    "PlanSummary",
    "Step",
    "TransferPlan",
    "make_plan",
    "step_bytes",
    "summarise",
]
