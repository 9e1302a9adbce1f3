"""The log: one line per event, in logfmt or JSON, without any registered secret.

Events of the standard library's loggers (urllib3, asyncio, warnings) and uncaught exceptions go through the same
formatter.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from creatify_exporter import redaction

Format = Literal["logfmt", "json"]


def configure(level: str, format: Format, stream: TextIO | None = None) -> None:  # noqa: A002  as the flag says
    """Send events of `level` (debug, info, warning, error) and above to `stream`, by default standard error.

    May be called again; the last call holds.
    """
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=_processors(format), foreign_pre_chain=[structlog.stdlib.add_logger_name]
        )
    )
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if isinstance(known, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Its debug messages contain redirect URLs, in which an API may spell a key in any way.
    logging.getLogger("urllib3").setLevel(logging.INFO)
    # Its warnings quote malformed headers, which may contain a prompt; the failed fetch is logged anyway.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def _processors(format: Format) -> list[Processor]:  # noqa: A002  as the flag says
    ends: dict[Format, list[Processor]] = {
        "json": [structlog.processors.JSONRenderer()],
        "logfmt": [
            _printable,
            structlog.processors.LogfmtRenderer(key_order=["time", "level", "msg"], bool_as_flag=False),
        ],
    }
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("msg"),
        _redacted,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        *ends[format],
    ]


def _redacted(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace secrets in all values, each of which becomes text, a number or None."""
    return {key: _plain(value) for key, value in event.items()}


def _plain(value: object) -> object:
    text = value if isinstance(value, str) else repr(value)
    masked = redaction.mask(text)
    # A secret may be a number.
    return value if masked == text and isinstance(value, int | float | None) else masked


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    r"""Escape control characters, so that a reply cannot add lines or colours. The renderer escapes \n."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = "\n".join(map(printable, value.split("\n")))
    return event


def warn(warnings: Iterable[str]) -> None:
    """Log the warnings about a configuration that is valid."""
    logger = structlog.get_logger()
    for warning in warnings:
        logger.warning("configuration warning", warning=warning)


def printable(text: str) -> str:
    """Escape control characters in a text, so that it cannot move the cursor or change colours."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def silenced(module: str) -> Iterator[None]:
    """Silence the logger of a module, for a command that prints the same facts itself."""
    logger = logging.getLogger(module)
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the standard library's name
        """Log that an event was lost; the inherited method would print its arguments, including secrets."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(f'level=error msg="an event cannot be logged" logger={record.name}\n')


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(__name__).error("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
