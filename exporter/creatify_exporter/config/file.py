"""Small files that people name: configurations, keys, certificates. Each is read whole, and within a bound."""

import os
import select
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# Seconds for which a pipe is waited for: at a reload nobody may write to it any more.
_PIPE_TIMEOUT: Final = 10.0
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

State = tuple[int, ...]


def expanded(name: str) -> Path:
    """Return the path of a name that may begin with `~`, which no shell has seen; ValueError if there is no home."""
    path = Path(name)
    if name.startswith("~"):
        with suppress(RuntimeError):
            path = path.expanduser()
        if not path.is_absolute():
            raise ValueError("begins with ~, but there is no such home directory; write the whole path")
    return path


def state(path: Path) -> State | None:
    """Return what differs once a file was written or replaced, None if there is none.

    Links are followed: Kubernetes swaps a secret by swapping a link.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    # What is written to a pipe can be read once, and is no change.
    if not stat.S_ISREG(found.st_mode):
        return (found.st_ino, found.st_dev)
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def read(path: Path, largest: int, *, pipe: bool = False) -> bytes:
    """Return the content without a byte order mark.

    `largest` is in bytes; only with `pipe` may the content come from something else than a regular file.
    ValueError says what is wrong with the file, and how to mend it, without its name.
    """
    no_name = ValueError("cannot be the name of a file; name a readable file")
    if "\0" in str(path):
        raise no_name
    try:
        return _read(path, largest, pipe=pipe)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}; name a readable file") from None
    except UnicodeError:
        raise no_name from None


def _read(path: Path, largest: int, *, pipe: bool) -> bytes:
    found = path.stat()
    # Asked before it is opened: opening a pipe without a writer waits for one.
    if not stat.S_ISREG(found.st_mode) and not (pipe and not stat.S_ISDIR(found.st_mode)):
        raise ValueError("is not a regular file; name a readable file")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        content = file.read(largest + 1) if is_regular else _from_pipe(file.fileno(), largest)
    if len(content) > largest:
        raise ValueError(f"is larger than {largest // 1024} KiB; name the right file")
    return content.removeprefix(_BYTE_ORDER_MARK)


def _from_pipe(pipe: int, largest: int) -> bytes:
    """Return what is written to a pipe until its writers close it, or what is more than `largest` bytes."""
    content, end = b"", time.monotonic() + _PIPE_TIMEOUT
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    while len(content) <= largest:
        if not ready.poll(1000 * max(0.0, end - time.monotonic())):
            raise ValueError(f"is a pipe to which nothing was written for {_PIPE_TIMEOUT:g} s; restart with a new one")
        if not (piece := os.read(pipe, largest + 1)):
            break
        content += piece
    return content
