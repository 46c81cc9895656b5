"""Who executes plans and other work: this process, or Ray actors. The bytes are the same."""

from bot_dist.execute.create import ALONE, EXECUTORS, create_executor
from bot_dist.execute.executor import Executor, StepResult

__all__ = ["ALONE", "EXECUTORS", "Executor", "StepResult", "create_executor"]
