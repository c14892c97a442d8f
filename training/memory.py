"""How much memory this process may still take, whoever limits it."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = {  # hierarchy → (folder, its limit, what it uses); version 2, and the memory controller of version 1
    "": ("sys/fs/cgroup", "memory.max", "memory.current"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_memory(root: Path = Path("/")) -> int:
    """Bytes: the least of what the machine has left, its cgroups allow, and the process's own limits leave.

    root: where /proc and /sys are. Where there is no /proc (macOS), half of the machine's memory.
    """
    found = [_of_machine(root), *_of_cgroups(root), *_of_limits(root)]
    return max(0, min(found))


def private_memory(root: Path = Path("/")) -> int:
    """Bytes that this process holds and shares with no file: what a limit on memory counts, and cannot take back."""
    return _fields(root / "proc/self/status").get("RssAnon", 0)


def data_memory(root: Path = Path("/")) -> int:
    """Bytes that RLIMIT_DATA counts: all that is mapped privately to be written, touched or not."""
    return _fields(root / "proc/self/status").get("VmData", 0)


def _of_machine(root: Path) -> int:
    available = _fields(root / "proc/meminfo").get("MemAvailable")
    return available if available is not None else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_cgroups(root: Path) -> Iterator[int]:
    """What the limit of each group that this process is in leaves, up to the outermost."""
    file = root / "proc/self/cgroup"
    for line in file.read_text().splitlines() if file.exists() else []:
        _, controllers, path = line.split(":", 2)
        for name in set(controllers.split(",")) & set(_CGROUPS):
            top, limit, used = _CGROUPS[name]
            group = root / top / path.lstrip("/")
            for folder in (group, *group.parents):
                if (allowed := _number(folder / limit)) is not None:
                    reclaimable = _fields(folder / "memory.stat", unit=1).get("inactive_file", 0)
                    yield allowed - (_number(folder / used) or 0) + reclaimable
                if folder == root / top:
                    break


def _of_limits(root: Path) -> Iterator[int]:
    taken = _fields(root / "proc/self/status")
    for kind, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - taken.get(field, 0)


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no such file, or it says "max"."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _fields(file: Path, unit: int = 1024) -> dict[str, int]:
    """`name: 12 kB` (or `name 12`) lines, in bytes; none if there is no such file."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): unit * int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
