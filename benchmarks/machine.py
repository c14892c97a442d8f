"""On what a measurement was made."""

import platform
from pathlib import Path


def processor() -> str:
    """The CPU's model, as the kernel calls it."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
