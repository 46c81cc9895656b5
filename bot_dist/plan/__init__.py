"""What a transfer does, decided before anything runs: pure, frozen, printable. No tensors, no Ray, no storage."""

from bot_dist.plan.details import Details, details_of
from bot_dist.plan.make import Fitted, SourceModule, make_plan, target_model
from bot_dist.plan.summary import ModuleRow, PlanSummary, step_bytes, summarise
from bot_dist.plan.transfer import DETAILS, AxisPlan, ModulePlan, Step, TransferPlan

__all__ = [
    "DETAILS",
    "AxisPlan",
    "Details",
    "Fitted",
    "ModulePlan",
    "ModuleRow",
    "PlanSummary",
    "SourceModule",
    "Step",
    "TransferPlan",
    "details_of",
    "make_plan",
    "step_bytes",
    "summarise",
    "target_model",
]
