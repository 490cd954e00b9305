"""On the PYTHONPATH of a job, makes its training steps last: a fast machine would be done before it can be interrupted."""

import os
import time

try:
    from ser_hpc.engine.fault.preemption import StopFlag
except ImportError:  # a Python without the project
    pass
else:
    look = StopFlag.reason

    def reason(self: StopFlag, save_s: float = 0.0) -> str | None:
        """Looked at once a step."""
        time.sleep(float(os.environ.get("STEP_SECONDS", "0.15")))
        return look(self, save_s)

    StopFlag.reason = reason  # type: ignore[method-assign]
