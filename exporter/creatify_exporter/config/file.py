"""Small files that users name: configurations, keys, certificates. Each is read whole, up to a maximum size."""

import os
import select
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# Seconds to wait for data from a pipe: at a reload, it may have no writer any more.
_PIPE_TIMEOUT: Final = 10.0
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

State = tuple[int, ...]


def expanded(name: str) -> Path:
    """Expand a leading `~` that no shell has expanded; ValueError if there is no such home directory."""
    path = Path(name)
    if name.startswith("~"):
        with suppress(RuntimeError):
            path = path.expanduser()
        if not path.is_absolute():
            raise ValueError("starts with ~, but there is no such home directory; write the full path")
    return path


def state(path: Path) -> State | None:
    """Return a value that changes when a file is written or replaced; None if the file does not exist.

    Links are followed: Kubernetes swaps a secret by swapping a link.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    # A pipe can be read only once, so that new content in it is not a change.
    if not stat.S_ISREG(found.st_mode):
        return (found.st_ino, found.st_dev)
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def read(path: Path, largest: int, *, pipe: bool = False) -> bytes:
    """Return the content without a byte order mark.

    `largest` is in bytes. Anything but a regular file is refused; with `pipe`, only a directory is.
    ValueError says what is wrong with the file and how to fix it, without naming the file.
    """
    no_name = ValueError("is not a valid file name; specify a readable file")
    if "\0" in str(path):
        raise no_name
    try:
        return _read(path, largest, pipe=pipe)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}; specify a readable file") from None
    except UnicodeError:
        raise no_name from None


def _read(path: Path, largest: int, *, pipe: bool) -> bytes:
    found = path.stat()
    # Checked before opening: opening a pipe blocks until it has a writer.
    if not stat.S_ISREG(found.st_mode) and not (pipe and not stat.S_ISDIR(found.st_mode)):
        raise ValueError("is not a regular file; specify a readable file")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        content = file.read(largest + 1) if is_regular else _from_pipe(file.fileno(), largest)
    if len(content) > largest:
        raise ValueError(f"is larger than {largest // 1024} KiB; specify the right file")
    return content.removeprefix(_BYTE_ORDER_MARK)


def _from_pipe(pipe: int, largest: int) -> bytes:
    """Read a pipe until its writers close it, or until there are more than `largest` bytes."""
    content, end = b"", time.monotonic() + _PIPE_TIMEOUT
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    while len(content) <= largest:
        if not ready.poll(1000 * max(0.0, end - time.monotonic())):
            raise ValueError(f"is a pipe to which nothing was written for {_PIPE_TIMEOUT:g} s; restart with a new pipe")
        if not (piece := os.read(pipe, largest + 1)):
            break
        content += piece
    return content
