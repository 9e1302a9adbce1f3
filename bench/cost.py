"""The cost of work for a process: seconds of wall and CPU time, and memory growth. Linux only."""

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

_FORGET_PEAK = "5"  # proc(5), /proc/PID/clear_refs


class Cost(NamedTuple):
    """Seconds of wall and CPU time, and the MB by which the peak resident memory exceeded the memory before."""

    wall: float
    cpu: float
    memory: float


class Meter:
    """Measures a process, by default this one; memory growth is relative to the creation of the meter."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = os.getpid() if pid is None else pid
        self._clock = (~self._pid << 3) | 2  # clock_getcpuclockid(3): all threads, also those that have ended
        self.before = self.resident()

    def resident(self) -> float:
        """Return the resident memory in MB."""
        return self._status("VmRSS")

    def cpu(self) -> float:
        """Return the CPU time so far, in seconds."""
        return time.clock_gettime(self._clock)

    def cost(self, work: Callable[[], object]) -> Cost:
        """Measure the process while `work` is done."""
        Path(f"/proc/{self._pid}/clear_refs").write_text(_FORGET_PEAK)
        cpu, wall = self.cpu(), time.perf_counter()
        work()
        wall, cpu = time.perf_counter() - wall, self.cpu() - cpu
        return Cost(wall, cpu, max(0.0, self._status("VmHWM") - self.before))

    def _status(self, name: str) -> float:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def children_cost(work: Callable[[], object]) -> Cost:
    """Measure the processes that `work` starts and waits for; memory is that of the largest one."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, after.ru_maxrss * 1024 / 1e6)


def median(costs: Iterable[Cost]) -> Cost:
    """Return the median of each."""
    return Cost(*map(statistics.median, zip(*costs, strict=True)))
