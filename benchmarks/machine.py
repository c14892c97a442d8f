"""On what a measurement was made."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Cores, processor and today's date, as pages and results.json state them."""
    return {"cores": os.cpu_count(), "processor": processor(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}


def processor() -> str:
    """The CPU's model, as the kernel calls it."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
