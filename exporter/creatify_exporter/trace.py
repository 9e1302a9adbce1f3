"""The steps of one fetch, for the log at level debug and for `/probe?debug=true`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

import structlog

# A list of many pages needs as many requests; the first and the last steps are enough.
_MOST_STEPS: Final = 100
_MIDDLE: Final = _MOST_STEPS // 2

_log = structlog.get_logger()


class Step(NamedTuple):
    """A step of a fetch, `seconds` after its start; `facts` hold no content, but may need masking."""

    seconds: float
    event: str
    facts: dict[str, object]


# Logger, start and steps of the fetch in this thread; a context variable, so that no function has to pass them on.
_current: ContextVar[tuple[structlog.BoundLogger, float, list[Step]] | None] = ContextVar("trace", default=None)


@contextmanager
def tracing(workspace: str, api: str) -> Iterator[list[Step]]:
    """Record the steps of the block, which is one fetch; yield the list that they are added to."""
    steps: list[Step] = []
    token = _current.set((_log.bind(workspace=workspace, api=api), time.monotonic(), steps))
    try:
        yield steps
    finally:
        _current.reset(token)


def step(event: str, **facts: object) -> None:
    """Record a step of the fetch in this thread, if there is one."""
    trace = _current.get()
    if trace is None:
        return
    log, began, steps = trace
    log.debug(event, **facts)
    steps.append(Step(time.monotonic() - began, event, facts))
    if len(steps) > _MOST_STEPS:
        steps[_MIDDLE : _MIDDLE + 2] = [steps[_MIDDLE]._replace(event="some steps are left out", facts={})]
