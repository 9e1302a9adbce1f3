"""SIGTERM and SIGHUP before the server handles them itself.

The kernel drops a signal that process 1 has no handler for, as in a container; any other process dies of it. So both
are held from the first instruction on, long before everything is imported, until the command is known. This module
imports nothing that takes time.
"""

import os
import signal
import sys

# 128 and the number of SIGTERM, as shells have it.
_TERMINATED = 143

_received: set[int] = set()
"""Signals that have come since they were held."""
_hangup: "signal._HANDLER" = None
"""What handled SIGHUP before it was held; None if no signals are held."""


def hold() -> None:
    """Remember SIGTERM, and ignore SIGHUP: nothing has been loaded yet that could be loaded again."""
    global _hangup  # noqa: PLW0603  a process has its signals once
    _hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _note)


def _note(signum: int, _: object) -> None:
    _received.add(signum)


def release(*, serving: bool) -> None:
    """Let SIGTERM end the process from now on: with exit code 0 if it serves, since an operator asks for it.

    From now on the configuration may be read, so a SIGHUP is noted for the server that will read it again. Any other
    command ends as if nothing had been held; a SIGTERM that has come already ends it here. Does nothing if no signals
    are held, as in a test that calls a command.
    """
    if _hangup is None:
        return
    signal.signal(signal.SIGHUP, _note if serving else _hangup)
    # What the start waits for, such as a database, goes on.
    signal.siginterrupt(signal.SIGHUP, False)
    if serving or os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: _exit(serving=serving))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.SIGTERM in _received:
        _exit(serving=serving)


def hung_up() -> bool:
    """Return whether a SIGHUP has come that asks for another look at what the start may have read before."""
    return signal.SIGHUP in _received


def _exit(*, serving: bool) -> None:
    sys.exit(0 if serving else _TERMINATED)
