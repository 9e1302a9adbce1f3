"""Reads lists many times, as the scrapes of a long-running exporter do: `python scrapes.py TASKS...`.

Before each length and after the last it asks for the system's load, so that callgrind can tell them apart.
"""

import os
import sys
from contextlib import closing
from io import BytesIO
from typing import Final

from creatify_exporter.config.schema import Config, LedgerSettings
from creatify_exporter.creatify.chunk_cache import ChunkCache
from creatify_exporter.creatify.decoder import Decoder
from creatify_exporter.exporter import rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.target import read_list

NOW: Final = 1_793_448_000.0
SCRAPES: Final = 6
PIECE: Final = 16 * 1024
ENTRY: Final = (
    b'{"id":"%036d","model_name":"flash","status":"done","credits_used":1.0,"created_at":"2026-10-01T00:00:00Z",'
)
# Every tenth task has a text that looks like the beginning of other tasks.
TEXTS: Final = (b'"text":"' + b'},{\\"id\\":' * 40 + b'"}', *[b'"text":"' + b"x" * 400 + b'"}'] * 9)


def body(tasks: int) -> bytes:
    """Return a list whose tasks have long been settled."""
    return b"[" + b",".join(ENTRY % number + TEXTS[number % 10] for number in range(tasks)) + b"]"


def record(listed: bytes) -> None:
    """Record a list again and again."""
    cache = ChunkCache(4 * PIECE)
    with closing(
        Ledger(
            SqliteStore(None),
            rules(Config(ledger=LedgerSettings(history="count"))),
            lambda: NOW,
        )
    ) as ledger:
        for scrape in range(SCRAPES):
            with closing(ledger.begin("default", "text_generator")) as transaction:
                cache = cache.successor(transaction.holds)
                read_list(Decoder(1 << 20, cache).batches(BytesIO(listed)), transaction, cache)
                ledger.commit(transaction, NOW + 15 * scrape)


if __name__ == "__main__":
    for length in sys.argv[1:]:
        os.getloadavg()
        record(body(int(length)))
    os.getloadavg()
