"""The state file that the agent's probe reads, replaced by rename so that it is never read half-written."""

import json
import os
import time


def write(path, generation, batch, open_jobs):
    """`batch` is the last micro-batch (-1 before the first); the time is the writer's clock in Unix milliseconds."""
    if not path:
        return
    state = {
        "generation": generation,
        "state": "running",
        "batch": batch,
        "updated_unix_ms": time.time_ns() // 1_000_000,
        "open_jobs": open_jobs,
    }
    beside = f"{path}.new"
    with open(beside, "w", encoding="utf-8") as out:
        json.dump(state, out)
    os.replace(beside, path)
