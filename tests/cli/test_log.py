import asyncio
import io
import json
import logging
import sys
import threading
import warnings
from datetime import UTC, datetime
from typing import NoReturn
from urllib.parse import quote, quote_plus

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from conftest import forget_secrets
from creatify_exporter import log, redaction

CANARY = "canary/9+8 \"7\\6'"


pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture(params=["logfmt", "json"])
def written(request: pytest.FixtureRequest) -> io.StringIO:
    stream = io.StringIO()
    redaction.register(CANARY)
    log.configure("debug", request.param, stream)
    return stream


@pytest.fixture
def lines() -> io.StringIO:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    return stream


def fail() -> NoReturn:
    cause = KeyError(CANARY)
    cause.add_note(f"note: {CANARY}")
    raise ValueError(f"cannot send {CANARY!r}") from cause


def test_an_event_is_a_line_of_logfmt() -> None:
    stream = io.StringIO()
    log.configure("info", "logfmt", stream)
    structlog.get_logger().info("list fetched", workspace="default", tasks=3, complete=True, took=None)
    time, rest = stream.getvalue().split(" ", 1)
    assert rest == 'level=info msg="list fetched" workspace=default tasks=3 complete=true took=\n'
    assert time.endswith("Z")
    moment = datetime.fromisoformat(time.removeprefix("time="))
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60


def test_an_event_is_an_object_of_json(lines: io.StringIO) -> None:
    structlog.get_logger().warning("list incomplete", workspace="default", cause="timeout")
    event = json.loads(lines.getvalue())
    assert event.pop("time").endswith("Z")
    assert event == {"level": "warning", "msg": "list incomplete", "workspace": "default", "cause": "timeout"}


def test_events_below_the_level_are_left_out(lines: io.StringIO) -> None:
    structlog.get_logger().debug("a")
    logging.getLogger("urllib3").debug("b")
    assert not lines.getvalue()


def test_the_last_configuration_holds(lines: io.StringIO) -> None:
    later = io.StringIO()
    log.configure("info", "json", later)
    structlog.get_logger().info("once")
    assert not lines.getvalue()
    assert later.getvalue().count("once") == 1


def test_the_standard_librarys_loggers_use_the_same_format(lines: io.StringIO) -> None:
    logging.getLogger("urllib3.util").info("Running on %s", "http://[::]:10081")
    event = json.loads(lines.getvalue())
    assert (event["logger"], event["msg"]) == ("urllib3.util", "Running on http://[::]:10081")


def test_a_warning_is_an_event(lines: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old certificate", UserWarning, stacklevel=1)
    assert "old certificate" in json.loads(lines.getvalue())["msg"]


def test_an_exception_is_one_line_with_its_cause(written: io.StringIO) -> None:
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("no list")
    assert written.getvalue().count("\n") == 1
    assert "KeyError" in written.getvalue()
    assert "level=error" in written.getvalue() or '"error"' in written.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        CANARY,
        f"X-API-KEY: {CANARY}!",
        f"https://api.example/?key={quote(CANARY)}&k={quote(CANARY, safe='')}&p={quote_plus(CANARY)}".lower(),
        CANARY.encode(),
        repr(CANARY.encode()),
        json.dumps({"key": CANARY}),
        {"headers": {"X-API-KEY": CANARY, CANARY: [1, (CANARY, {CANARY})]}},
        [[[[[[[[[[[CANARY]]]]]]]]]]],
        ValueError(CANARY),
        {"b": CANARY.encode()},
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_shows_a_secret(written: io.StringIO, value: object) -> None:
    structlog.get_logger().info("event", value=value)
    structlog.get_logger().info(f"event {value}")
    logging.getLogger("urllib3").warning("reply: %s %r", value, value)
    assert written.getvalue().count("\n") == 3
    assert redaction.HIDDEN in written.getvalue()
    assert "canary" not in written.getvalue()


def test_no_exception_shows_a_secret(written: io.StringIO) -> None:
    try:
        fail()
    except ValueError as error:
        structlog.get_logger().exception("no list")
        structlog.get_logger().error("no list", exc_info=error)
        logging.getLogger("asyncio").exception("no list")
    assert written.getvalue().count("\n") == 3
    assert "KeyError" in written.getvalue()
    assert "canary" not in written.getvalue()


def test_an_uncaught_exception_shows_no_secret(written: io.StringIO) -> None:
    thread = threading.Thread(target=fail, name="uncaught")
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert written.getvalue().count("uncaught exception") == 2
    assert "canary" not in written.getvalue()


def test_a_task_that_nobody_awaited_shows_no_secret(written: io.StringIO) -> None:
    async def forget() -> None:
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)

    asyncio.run(forget())
    assert "KeyError" in written.getvalue()
    assert "canary" not in written.getvalue()


def test_an_event_that_cannot_be_written_shows_no_secret(
    written: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__ == log.__name__]
    logging.getLogger("urllib3").warning("%d requests", CANARY)
    assert "an event cannot be logged" in written.getvalue()
    assert "canary" not in written.getvalue() + "".join(capsys.readouterr())


def test_a_reply_cannot_add_lines_to_the_log() -> None:
    stream = io.StringIO()
    log.configure("info", "logfmt", stream)
    structlog.get_logger().info("reply", text="a\r\nlevel=error\x1b[31m\u2028\ud800")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().rstrip("\n").isprintable()


def test_a_secret_that_is_a_number_is_hidden_as_one(lines: io.StringIO) -> None:
    redaction.register("7391846205")
    structlog.get_logger().info("event", number=7391846205, other=12)
    event = json.loads(lines.getvalue())
    assert (event["number"], event["other"]) == (redaction.HIDDEN, 12)


def test_a_longer_secret_is_masked_whole_even_if_it_contains_a_shorter_one() -> None:
    redaction.register("qzxjkw-q")
    redaction.register("qzxjkw-qzxjkw")
    assert redaction.mask("a qzxjkw-qzxjkw b qzxjkw-q c") == f"a {redaction.HIDDEN} b {redaction.HIDDEN} c"


def test_an_empty_text_is_not_a_secret() -> None:
    redaction.register("")
    assert redaction.mask("ab") == "ab"


def test_the_keys_of_a_thousand_workspaces_are_masked_quickly() -> None:
    secrets = [f"{number:04}-zqkey" for number in range(2000)]
    for secret in secrets:
        redaction.register(secret)
    assert redaction.mask(" ".join(secrets)) == " ".join([redaction.HIDDEN] * 2000)


def test_many_threads_register_secrets_while_others_log(lines: io.StringIO) -> None:
    secrets = [f"zq{number}qz-key" for number in range(40)]

    def work(mine: list[str]) -> None:
        for secret in mine:
            redaction.register(secret)
            structlog.get_logger().info("key", key=secret)

    threads = [threading.Thread(target=work, args=(secrets[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [event["key"] for event in events] == [redaction.HIDDEN] * len(secrets)


@given(secret=st.text(alphabet="♠♣♥♦ %/+\\'\"é", min_size=8), around=st.text(alphabet="abc \n\x1b", max_size=5))
def test_no_secret_is_shown_whatever_its_characters(secret: str, around: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Without the secrets of earlier examples: each makes masking slower.
        forget_secrets(patch)
        redaction.register(secret)
        text = around + secret + around + quote(secret) + around + json.dumps(secret)
        shown = redaction.mask(text)
    assert secret not in shown
    assert quote(secret, safe="") not in shown
