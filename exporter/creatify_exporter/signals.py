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


class _Held:
    """What was there before the signals were held, and which have come since."""

    def __init__(self) -> None:
        self.hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.terminated = self.hung_up = False
        signal.signal(signal.SIGTERM, self._note_termination)

    def _note_termination(self, *_: object) -> None:
        self.terminated = True

    def note_hangup(self, *_: object) -> None:
        self.hung_up = True


_held: _Held | None = None


def hold() -> None:
    """Remember SIGTERM, and ignore SIGHUP: nothing has been loaded yet that could be loaded again."""
    global _held  # noqa: PLW0603  a process has its signals once
    _held = _Held()


def release(*, serving: bool) -> None:
    """Let SIGTERM end the process from now on: with exit code 0 if it serves, since an operator asks for it.

    From now on the configuration may be read, so a SIGHUP is noted for the server that will read it again. Any other
    command ends as if nothing had been held; a SIGTERM that has come already ends it here. Does nothing if no signals
    are held, as in a test that calls a command.
    """
    if _held is None:
        return
    signal.signal(signal.SIGHUP, _held.note_hangup if serving else _held.hangup)
    # What the start waits for, such as a database, goes on.
    signal.siginterrupt(signal.SIGHUP, False)
    if serving or os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: _exit(serving=serving))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _held.terminated:
        _exit(serving=serving)


def hung_up() -> bool:
    """Return whether a SIGHUP has come that asks for another look at what the start may have read before."""
    return _held is not None and _held.hung_up


def _exit(*, serving: bool) -> None:
    sys.exit(0 if serving else _TERMINATED)
