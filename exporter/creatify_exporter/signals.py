"""SIGTERM and SIGHUP before the server handles them itself.

Without a handler, the kernel discards these signals for process 1, as in a container, and kills any other process. So
both are held from the first instruction, long before the imports are done, until the command is known. This module
imports nothing that takes time.
"""

import os
import signal
import sys

# 128 and the number of SIGTERM, as shells have it.
_TERMINATED = 143

_received: set[int] = set()
"""Signals received since they were held."""
_hangup: "signal._HANDLER" = None
"""The handler of SIGHUP before it was held; None if no signals are held."""


def hold() -> None:
    """Record SIGTERM, and ignore SIGHUP: there is no configuration to reload yet."""
    global _hangup  # noqa: PLW0603  signal handlers are global to the process
    _hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _record)


def _record(signum: int, _: object) -> None:
    _received.add(signum)


def release(*, serving: bool) -> None:
    """Let SIGTERM end the process: with exit code 0 for a server, because an operator asked it to stop.

    The configuration may be read from now on, so a server records SIGHUP, to reload later. Other commands behave as
    if nothing had been held. A SIGTERM that has already been received ends the process here. Does nothing if no
    signals are held, as in a test that calls a command.
    """
    if _hangup is None:
        return
    signal.signal(signal.SIGHUP, _record if serving else _hangup)
    # SIGHUP must not interrupt system calls during the start, such as connecting to a database.
    signal.siginterrupt(signal.SIGHUP, False)
    if serving or os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: _exit(serving=serving))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.SIGTERM in _received:
        _exit(serving=serving)


def hung_up() -> bool:
    """Return whether a SIGHUP was received after the start may have read the configuration."""
    return signal.SIGHUP in _received


def _exit(*, serving: bool) -> None:
    sys.exit(0 if serving else _TERMINATED)
