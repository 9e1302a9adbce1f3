"""How many answers are rendered at once, while a test holds them up."""

import asyncio
import threading

import pytest
from starlette.datastructures import Headers

from creatify_exporter.web.rendering import Renderer


class Work:
    """Renders how many have begun, once it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.begun = self.running = self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self) -> bytes:
        with self._lock:
            self.begun, self.running = self.begun + 1, self.running + 1
            self.most_at_once = max(self.most_at_once, self.running)
        self.released.wait(30)
        with self._lock:
            self.running -= 1
        return b"rendered"


def test_two_are_rendered_at_once_and_clients_that_leave_make_no_room_for_more() -> None:
    work = Work()

    async def scene() -> None:
        renderer = Renderer()
        answers = [asyncio.create_task(renderer.render(Headers({}), work, "text/plain")) for _ in range(10)]
        async with asyncio.timeout(30):
            while work.begun < 2:  # noqa: ASYNC110 - a thread makes it so
                await asyncio.sleep(0.01)
        for leaving in answers[:4]:
            leaving.cancel()
        await asyncio.sleep(0.05)
        work.released.set()
        assert {bytes((await answer).body) for answer in answers[4:]} == {b"rendered"}

    asyncio.run(scene())
    assert (work.begun, work.most_at_once) == (8, 2)


def test_a_system_without_threads_costs_answers_and_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scene() -> bytes:
        renderer = Renderer()
        with monkeypatch.context() as context:
            context.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                with pytest.raises(RuntimeError):
                    await renderer.render(Headers({}), bytes, "text/plain")
        async with asyncio.timeout(30):
            return bytes((await renderer.render(Headers({}), lambda: b"rendered", "text/plain")).body)

    assert asyncio.run(scene()) == b"rendered"
