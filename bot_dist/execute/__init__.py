"""Who executes a plan: this process, or Ray shard actors. Same plan, same bytes."""

from bot_dist.execute.executor import Executor, StepResult
from bot_dist.execute.local import LocalExecutor

__all__ = ["Executor", "LocalExecutor", "StepResult"]
