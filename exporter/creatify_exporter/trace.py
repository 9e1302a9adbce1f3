"""What one fetch does, step by step: for the log at the level debug, and for `/probe?debug=true`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

import structlog

# A list of many pages has as many requests; the first and the last steps tell enough.
_MOST_STEPS: Final = 100
_MIDDLE: Final = _MOST_STEPS // 2

_log = structlog.get_logger()


class Step(NamedTuple):
    """Something that a fetch did, `seconds` after it began; `facts` hold no content and may have to be masked."""

    seconds: float
    event: str
    facts: dict[str, object]


# Of the fetch that runs in this thread, whose parts need not know of it: its logger, when it began, and its steps.
_current: ContextVar[tuple[structlog.BoundLogger, float, list[Step]] | None] = ContextVar("trace", default=None)


@contextmanager
def tracing(workspace: str, api: str) -> Iterator[list[Step]]:
    """Keep the steps of the block, which is one fetch; yield them as they come."""
    steps: list[Step] = []
    token = _current.set((_log.bind(workspace=workspace, api=api), time.monotonic(), steps))
    try:
        yield steps
    finally:
        _current.reset(token)


def step(event: str, **facts: object) -> None:
    """Note a step of the fetch that runs in this thread, if there is one."""
    trace = _current.get()
    if trace is None:
        return
    log, began, steps = trace
    log.debug(event, **facts)
    steps.append(Step(time.monotonic() - began, event, facts))
    if len(steps) > _MOST_STEPS:
        steps[_MIDDLE : _MIDDLE + 2] = [steps[_MIDDLE]._replace(event="some steps are left out", facts={})]
