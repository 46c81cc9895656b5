"""What is worked around in libraries is still there: where one of these fails, the library has changed, and what is
named in it has to be looked at again."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

SHUTDOWN = """
import ctypes, signal
import ray
signal.signal(signal.SIGTERM, lambda *_: None)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
signal.signal(signal.SIGTERM, lambda *_: None)  # Ray has put its own in the place of it
ray.shutdown()
action = (ctypes.c_void_p * 32)()
ctypes.CDLL(None).sigaction(signal.SIGTERM, None, action)
print("default" if action[0] is None else "kept")
"""


@pytest.mark.ray
@pytest.mark.slow
def test_ray_forgets_what_is_done_on_a_signal() -> None:
    """Else ``bot_dist.execute.ray.cluster._kept_sigterm`` can go."""
    found = subprocess.run([sys.executable, "-c", SHUTDOWN], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split()[-1] == "default"


@pytest.mark.deepspeed
def test_deepspeed_keeps_for_good_what_it_releases(recwarn: pytest.WarningsRecorder) -> None:
    """Else ``forget_releases_with_traces`` warns, and can go."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    from bot_dist.train.engine import forget_releases_with_traces

    forget_releases_with_traces()
    forgets: Any = Coordinator._clear_trace_structures
    forget_releases_with_traces()
    assert forgets is Coordinator._clear_trace_structures, "once is enough"
    assert hasattr(forgets, "__wrapped__")
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
