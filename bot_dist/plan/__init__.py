"""Plans: all that a transfer does, decided before anything runs. Pure, frozen, printable; no tensors, no Ray, no
storage.
"""

from bot_dist.plan.axis_plan import AxisPlan
from bot_dist.plan.cost import REQUESTS, operator_rows, step_bytes, step_peak
from bot_dist.plan.details import Details, Shrunk, details_of
from bot_dist.plan.fitted import (
    ORDER,
    averages,
    basis_of,
    growing,
    regroups,
    rotation_refused,
    sequential_refused,
    shrinking,
)
from bot_dist.plan.fitted_names import FittedName, owner_of
from bot_dist.plan.fitted_table import OperatorTable, adaptive, operators, placed
from bot_dist.plan.function_kept import FunctionKept
from bot_dist.plan.make_plan import SourceModule, make_plan, target_model
from bot_dist.plan.module_plan import (
    DETAILS,
    MOMENTS,
    DetailPlan,
    ModulePlan,
    Moment,
    OptimizerStatePlan,
    WeightPlan,
    moment_name,
)
from bot_dist.plan.plan import Step, TransferPlan
from bot_dist.plan.simulate import Hardware, Simulation, parse_hardware, simulate
from bot_dist.plan.summary import ModuleRow, PlanSummary, summarise
from bot_dist.plan.tiling import LANES

__all__ = [
    "DETAILS",
    "LANES",
    "MOMENTS",
    "ORDER",
    "REQUESTS",
    "AxisPlan",
    "DetailPlan",
    "Details",
    "FittedName",
    "FunctionKept",
    "Hardware",
    "ModulePlan",
    "ModuleRow",
    "Moment",
    "OperatorTable",
    "OptimizerStatePlan",
    "PlanSummary",
    "Shrunk",
    "Simulation",
    "SourceModule",
    "Step",
    "TransferPlan",
    "WeightPlan",
    "adaptive",
    "averages",
    "basis_of",
    "details_of",
    "growing",
    "make_plan",
    "moment_name",
    "operator_rows",
    "operators",
    "owner_of",
    "parse_hardware",
    "placed",
    "regroups",
    "rotation_refused",
    "sequential_refused",
    "shrinking",
    "simulate",
    "step_bytes",
    "step_peak",
    "summarise",
    "target_model",
]
