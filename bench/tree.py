"""What a process and everything that it started have cost: processor time and memory, from `/proc`.

The time of children that have ended is in their parent's account; of one that is nobody's child any more it
is lost, which no contender's design has.
"""

import os
from collections import defaultdict
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _fields(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the name; none when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def processes(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            children[int(fields[1])].append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children[pid])
    return found


def cpu_seconds(root: int) -> float:
    """Processor time of the tree since it began, user and system."""
    used = 0
    for pid in processes(root):
        if fields := _fields(pid):
            own, ended = fields[11:13], fields[13:15]
            used += sum(map(int, own + ended))
    return used / _TICK


def resident_bytes(root: int) -> int:
    """Resident memory of the tree; pages that two of its processes share count twice."""
    pages = 0
    for pid in processes(root):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * _PAGE
