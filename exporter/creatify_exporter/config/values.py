"""Times and sizes as people write them."""

import math
import re
from typing import Self

_DURATION = re.compile(
    r"(?:(\d{1,9})y)?(?:(\d{1,9})w)?(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?",
    re.ASCII,
)
_SECONDS = (365 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, 60.0, 1.0, 0.001)
_SIZE = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB)", re.ASCII)
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Seconds(float):
    """A time in seconds, written as a Prometheus duration: `30s`, `1h30m`, `250ms`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text`; ValueError says what is wrong."""
        match = _DURATION.fullmatch(text)
        if not text or not match:
            raise ValueError("is not a duration; write whole numbers with units, like 30s, 2m or 1h30m")
        # Whole milliseconds, so that 1s500ms is 1.5 exactly.
        return cls(math.fsum(int(n) * unit for n, unit in zip(match.groups(), _SECONDS, strict=True) if n))


class ByteSize(int):
    """A size in bytes, written with a binary unit: `512B`, `16MiB`, `4GiB`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text`; ValueError says what is wrong."""
        match = _SIZE.fullmatch(text)
        if not match:
            raise ValueError("is not a size; write a whole number with a unit, like 16MiB or 4GiB")
        return cls(int(match[1]) * _BYTES[match[2]])
