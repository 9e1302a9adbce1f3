"""What is rendered how often, for scrapes that come while a test holds others up."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from creatify_exporter.config.schema import Config
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.web.rendering import Renderings


class Work:
    """Renders how many have begun, once it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.begun = self.ended = self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self) -> bytes:
        with self._lock:
            self.begun += 1
            number, self.most_at_once = self.begun, max(self.most_at_once, self.begun - self.ended)
        self.let.wait(30)
        with self._lock:
            self.ended += 1
        return b"%d" % number


@pytest.fixture
def renderings() -> Renderings:
    config = Config()
    return Renderings(Exporter(config, Ledger(SqliteStore(None), rules(config))))


def run(scene: Callable[[Work], Awaitable[None]]) -> Work:
    work = Work()

    async def played() -> None:
        try:
            await scene(work)
        finally:
            work.let.set()

    asyncio.run(played())
    return work


async def become(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - a thread makes it so
            await asyncio.sleep(0.01)


def test_who_asks_for_what_others_wait_for_gets_the_same_but_nothing_that_was_begun_before(
    renderings: Renderings,
) -> None:
    async def scene(work: Work) -> None:
        scrapes = []
        for begun in (1, 2):
            scrapes.append(asyncio.create_task(renderings.render("all", work)))
            await become(lambda begun=begun: work.begun == begun)  # type: ignore[misc]  # of a default
        scrapes += [asyncio.create_task(renderings.render("all", work)) for _ in range(62)]
        await asyncio.sleep(0)
        work.let.set()
        assert [await each for each in scrapes] == [b"1", b"2", *[b"3"] * 62]

    assert run(scene).begun == 3


def test_two_are_rendered_at_once_and_no_more(renderings: Renderings) -> None:
    async def scene(work: Work) -> None:
        scrapes = [asyncio.create_task(renderings.render(number, work)) for number in range(10)]
        await become(lambda: work.begun == 2)
        work.let.set()
        assert {await each for each in scrapes} == {b"%d" % number for number in range(1, 11)}

    assert run(scene).most_at_once == 2


def test_who_goes_away_does_not_take_it_from_the_others(renderings: Renderings) -> None:
    async def scene(work: Work) -> None:
        held = [asyncio.create_task(renderings.render(number, work)) for number in range(2)]
        await become(lambda: work.begun == 2)
        leaver, other = (asyncio.create_task(renderings.render("all", work)) for _ in range(2))
        await asyncio.sleep(0)
        leaver.cancel()
        work.let.set()
        assert await other == b"3"
        await asyncio.wait(held)

    run(scene)
