"""How many responses are rendered at once, while a test holds them up, and in which format."""

import asyncio
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from creatify_exporter.web.rendering import OPENMETRICS, TEXT, Renderer, accepts_gzip, content_type


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


def test_two_are_rendered_at_once_and_clients_that_disconnect_free_no_slot() -> None:
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


def test_a_system_out_of_threads_fails_responses_but_keeps_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
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


NAME = "application/openmetrics-text"
PROMETHEUS_3 = (
    f"{NAME};version=1.0.0;escaping=allow-utf-8;q=0.6,{NAME};version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/*", TEXT),
        ("text/html", TEXT),
        (NAME, OPENMETRICS),
        (f"{NAME.upper()};VERSION=1.0.0", OPENMETRICS),
        (f'{NAME}; version="1.0.0"', OPENMETRICS),
        (f"{NAME};version=2.0.0", OPENMETRICS),
        (f"{NAME};version=x", TEXT),
        (f"{NAME};q=0", TEXT),
        (f"{NAME};q=0.000, */*", TEXT),
        (f"{NAME};Q=0,text/plain", TEXT),
        (f"{NAME};q=0.5,text/plain;version=0.0.4;q=0.6", TEXT),
        (f"{NAME};q=0.6,text/plain;version=0.0.4;q=0.5", OPENMETRICS),
        (f"text/plain, {NAME}", OPENMETRICS),
        (f"{NAME};q=0.5, */*;q=0.9", TEXT),
        (f"{NAME};q=oops, text/plain;q=0.1", TEXT),
        (f"{NAME};version=0.0.1;q=0.3,{NAME};version=1.0.0;q=0.8,text/plain;q=0.5", OPENMETRICS),
        (f"{NAME};version=1.0.0;q=0,{NAME};q=0.5,text/plain;q=0.1", TEXT),
        (f"{NAME};version=2.0.0;q=0.9,{NAME};version=1.0.0;q=0.1,text/plain;q=0.5", TEXT),
        (f"{NAME};version=2.0.0;q=0,{NAME};q=0.5,text/plain;q=0.1", OPENMETRICS),
        (f"text/plain;version=0.0.4;q=0,text/plain;q=1,{NAME};q=0.1", OPENMETRICS),
        (f"{NAME};version=,text/plain", OPENMETRICS),
        ("application/*", OPENMETRICS),
        ("application/*;q=0.1, text/*;q=0.2", TEXT),
        ("text/plain;q=0, */*", OPENMETRICS),
        (f'text/html;title="a,{NAME}"', TEXT),
        (f"{NAME};escaping=values", f"{OPENMETRICS}; escaping=values"),
        (f"{NAME};escaping=unheard-of", OPENMETRICS),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", f"{TEXT}; escaping=allow-utf-8"),
        (PROMETHEUS_3, f"{OPENMETRICS}; escaping=allow-utf-8"),
        (f"{NAME};version=2.0.0;escaping=allow-utf-8;q=0.7,{PROMETHEUS_3}", f"{OPENMETRICS}; escaping=allow-utf-8"),
    ],
)
def test_a_client_gets_the_format_that_it_prefers(accept: str, expected: str) -> None:
    assert content_type(accept) == expected


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("br, zstd", False),
        ("identity", False),
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; Q=0.0", False),
        ("gzip;q=0, *", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0.1, identity", False),
        ("gzip;q=0.5, identity;q=0.5", True),
        ("not-gzip", False),
    ],
)
def test_an_answer_is_compressed_if_the_client_prefers_it(accepted: str, compressed: bool) -> None:
    assert accepts_gzip(accepted) is compressed


WORDS = f"""
{NAME} text/plain text/html */* ; , = version q escaping 1.0.0 0.0.1 0.0.4 2 999.9.9 -1 1.x allow-utf-8 dots values "
"""
words = st.sampled_from([*WORDS.split(), " ", "\xff", "\\"])


@example(header=f"{NAME};version=x")
@example(header='"' * 10_000)
@example(header=",;=" * 5000)
@given(header=st.lists(words, max_size=12).map("".join))
def test_no_header_breaks_it(header: str) -> None:
    assert content_type(header).startswith((TEXT, OPENMETRICS))
    assert accepts_gzip(header) in (True, False)
