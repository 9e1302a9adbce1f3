"""The exceptions of this package, by what the caller does next.

::

    ExporterError
    ├── ConfigError          the user must fix a file or a flag: printed, exit 1
    ├── LedgerError
    │   ├── LedgerRefused    the ledger must not be used: printed, exit 1
    │   └── LedgerUnavailable  this transaction is lost, the next one tries again
    └── FetchError           this fetch is lost and counted under its cause
        └── RateLimited      … and the next fetch waits
"""

from collections.abc import Sequence
from typing import Literal, get_args

Cause = Literal[
    "auth",
    "rate_limited",
    "timeout",
    "connection",
    "tls",
    "http_status",
    "invalid_body",
    "too_large",
    "redirect",
    "ledger",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)


class ExporterError(Exception):
    """Base class of all errors that this exporter raises on purpose; the text is safe to log."""


class ConfigError(ExporterError):
    """The configuration is unusable; `problems` has a line per error: location, what is wrong, how to fix it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class LedgerError(ExporterError):
    """An operation on the ledger failed."""


class LedgerRefused(LedgerError):
    """The ledger is damaged, foreign, newer than this program, or in use; nothing in it was changed."""


class LedgerUnavailable(LedgerError):
    """The ledger cannot be read or written at the moment; a write that failed may still have been committed."""


class FetchError(ExporterError):
    """A fetch returned no complete list; `cause` is a label value of `creatify_fetch_failures_total`."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class RateLimited(FetchError):
    """The API answered 429; `retry_after` is the time to wait in seconds, None if the API gave none."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__("rate_limited", message)
        self.retry_after = retry_after
