"""What can go wrong, split by what the caller does next.

::

    ExporterError
    ├── ConfigError          the user mends a file or a flag: printed, exit 1
    ├── LedgerError
    │   ├── LedgerRefused    the ledger must not be used: printed, exit 1
    │   └── LedgerUnavailable  this recording is lost, the next one tries again
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
    """Everything that this exporter raises on purpose; its text can be logged."""


class ConfigError(ExporterError):
    """The configuration cannot be used; `problems` holds one line for each mistake: where, what, how to mend it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class LedgerError(ExporterError):
    """The ledger did not do what was asked of it."""


class LedgerRefused(LedgerError):
    """The ledger is damaged, foreign, newer than this program, or in use; nothing in it was touched."""


class LedgerUnavailable(LedgerError):
    """The ledger cannot be written or read just now; a write that failed may have been committed all the same."""


class FetchError(ExporterError):
    """A fetch brought no complete list; `cause` is a label value of `creatify_fetch_failures_total`."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class RateLimited(FetchError):
    """The API answered 429; `retry_after` is its wish in seconds, None if it has none."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__("rate_limited", message)
        self.retry_after = retry_after
