"""The middleware, called as a server calls it, while its files change."""

import asyncio
import base64
import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import bcrypt
import pytest
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clocks import ManualClock
from creatify_exporter.errors import ConfigError
from creatify_exporter.web import web_config
from creatify_exporter.web.middleware import RateLimiter, WebMiddleware
from creatify_exporter.web.reloader import Reloader

PAIR = Path(__file__).parents[1] / "certificates"
LOOK = 0.02  # seconds between two checks of the files
RELOADED = "info: web configuration reloaded"
REFUSED = "error: web configuration not reloaded, the old one stays in effect"


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


USERS = f"basic_auth_users: {{alice: '{hashed('canary')}'}}\n"
OTHER_USERS = f"basic_auth_users: {{alice: '{hashed('changed')}'}}\n"
HEADERS = "http_server_config: {headers: {X-Frame-Options: deny, X-XSS-Protection: 1}}\n"
TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key}\n"


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]

    def header(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]


class BrokenOnPurpose(Exception):
    pass


async def _framed(_: Request) -> Response:
    return PlainTextResponse("framed", headers={"X-Frame-Options": "sameorigin"})


async def _broken(_: Request) -> Response:
    raise BrokenOnPurpose


async def _plain(_: Request) -> Response:
    return PlainTextResponse("well")


ROUTES = [Route("/", _framed), Route("/broken", _broken), Route("/-/healthy", _plain), Route("/-/ready", _plain)]


async def asked(middleware: WebMiddleware, path: str, *headers: tuple[bytes, bytes], **scope: Any) -> Answer:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asking: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "GET", "path": path}
    asking |= {"headers": list(headers), "query_string": b"", "root_path": "", "scheme": "http", "client": None}
    with suppress(BrokenOnPurpose):
        await middleware.wrap(Starlette(routes=ROUTES))(asking | scope, receive, send)
    start = sent[0]
    return Answer(start["status"], [(name.decode(), value.decode()) for name, value in start["headers"]])


def ask(middleware: WebMiddleware, path: str, *headers: tuple[bytes, bytes], **scope: Any) -> Answer:
    return asyncio.run(asked(middleware, path, *headers, **scope))


def login(password: str, name: str = "alice") -> tuple[bytes, bytes]:
    return (b"authorization", b"Basic " + base64.b64encode(f"{name}:{password}".encode()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(PAIR / name, tmp_path)
    return tmp_path


def opened(folder: Path, *sections: str) -> WebMiddleware:
    write(folder, *sections)
    return WebMiddleware(folder / "web.yml")


def write(folder: Path, *sections: str) -> None:
    """Replace the file atomically, because it may be read at any time."""
    (folder / "new.yml").write_text("".join(sections) or "{}\n")
    (folder / "new.yml").rename(folder / "web.yml")


def test_without_a_file_everybody_is_admitted_and_nothing_is_added() -> None:
    answer = ask(WebMiddleware(), "/")
    assert (answer.status, answer.header("x-frame-options"), WebMiddleware().loaded.context) == (
        200,
        ["sameorigin"],
        None,
    )


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready"])
def test_probes_need_no_password(folder: Path, path: str) -> None:
    assert ask(opened(folder, USERS), path).status == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/-/reload", "/-/healthy/", "/-/healthy\n", "//-/healthy", "/-/ready/..", "/-/Healthy", ""],
)
def test_everything_else_needs_a_password(folder: Path, path: str) -> None:
    answer = ask(opened(folder, USERS), path)
    assert answer.status == 401
    assert answer.header("www-authenticate") == ['Basic realm="creatify-exporter", charset="UTF-8"']


def test_a_user_gets_in(folder: Path) -> None:
    middleware = opened(folder, USERS)
    assert ask(middleware, "/", login("canary")).status == 200
    assert ask(middleware, "/", login("wrong")).status == 401
    assert ask(middleware, "/", login("canary", "bob")).status == 401


def test_two_authorization_headers_count_as_none(folder: Path) -> None:
    assert ask(opened(folder, USERS), "/", login("canary"), login("canary")).status == 401


def test_a_flood_of_logins_is_told_to_retry(folder: Path) -> None:
    middleware = opened(folder, USERS, HEADERS)

    async def flood() -> list[Answer]:
        return list(await asyncio.gather(*(asked(middleware, "/", login(f"wrong {n}")) for n in range(80))))

    busy = [answer for answer in asyncio.run(flood()) if answer.status == 503]
    assert busy
    assert {(*answer.header("retry-after"), *answer.header("x-frame-options")) for answer in busy} == {("1", "deny")}


def test_requests_over_the_rate_limit_are_told_to_retry_but_not_probes(folder: Path) -> None:
    limit = "rate_limit: {interval: 90s, burst: 2}\n"
    middleware = opened(folder, limit)
    assert [ask(middleware, "/").status for _ in range(3)] == [200, 200, 429]
    assert ask(middleware, "/").header("retry-after") == ["90"]
    assert ask(middleware, "/-/healthy").status == 200
    write(folder, limit, HEADERS)
    middleware.apply(middleware.load())
    assert ask(middleware, "/").status == 429, "another header does not refill it"
    write(folder, "rate_limit: {interval: 0}\n")
    middleware.apply(middleware.load())
    assert ask(middleware, "/").status == 200


@pytest.mark.parametrize(
    ("path", "headers", "scope", "status"),
    [
        ("/", [login("canary")], {}, 200),
        ("/", [], {}, 401),
        ("/nowhere", [login("canary")], {}, 404),
        ("/-/ready", [], {"method": "POST"}, 405),
        ("/broken", [login("canary")], {}, 500),
    ],
)
def test_every_response_carries_the_headers(
    folder: Path, path: str, headers: Sequence[tuple[bytes, bytes]], scope: dict[str, Any], status: int
) -> None:
    answer = ask(opened(folder, USERS, HEADERS), path, *headers, **scope)
    assert (answer.status, answer.header("x-frame-options"), answer.header("x-xss-protection")) == (
        status,
        ["deny"],
        ["1"],
    )


def test_tls_cannot_be_turned_on_or_off_without_a_restart(folder: Path) -> None:
    plain, encrypted = opened(folder, USERS), opened(folder, TLS)
    assert plain.loaded.context is None
    assert encrypted.loaded.context
    with pytest.raises(ConfigError, match=r"tls_server_config: cannot be added .*; restart the exporter"):
        plain.load()
    write(folder, USERS)
    with pytest.raises(ConfigError, match=r"tls_server_config: cannot be removed .*; restart the exporter"):
        encrypted.load()


Lines = list[str]
Step = tuple[Callable[[], object], Callable[[Lines], bool]]


def watched(middleware: WebMiddleware, *steps: Step) -> Lines:
    """Do each step and wait for its effect, while the middleware watches; return its lines in the log."""

    def lines() -> Lines:
        return [f"{event['log_level']}: {event['event']}" for event in events]

    unused: Any = None

    async def run() -> None:
        watching = asyncio.create_task(Reloader(unused, unused, middleware).watch_web_configuration(LOOK))
        for act, done in steps:
            act()
            async with asyncio.timeout(20):
                while not done(lines()):  # noqa: ASYNC110  what is waited for is in files and in the log
                    await asyncio.sleep(LOOK / 4)
        watching.cancel()

    with structlog.testing.capture_logs() as events:
        asyncio.run(run())
    return lines()


def a_while() -> Callable[[Lines], bool]:
    """Return a condition that is true after enough checks for two attempts."""
    left = iter(range(100))
    return lambda _: next(left, None) is None


def says(number: int) -> Callable[[Lines], bool]:
    """Return a condition that is true once there are so many lines."""
    return lambda lines: len(lines) >= number


def test_users_and_headers_change_without_a_restart(folder: Path) -> None:
    middleware = opened(folder, USERS)
    assert ask(middleware, "/", login("canary")).status == 200
    lines = watched(
        middleware,
        (lambda: write(folder, OTHER_USERS, HEADERS), says(1)),
    )
    assert lines == [RELOADED]
    assert ask(middleware, "/", login("canary")).status == 401, "who was admitted is forgotten"
    assert ask(middleware, "/", login("changed")).header("x-frame-options") == ["deny"]


def test_logins_are_remembered_until_a_user_changes(folder: Path) -> None:
    middleware = opened(folder, USERS)
    assert ask(middleware, "/", login("canary")).status == 200
    users = middleware._users  # noqa: SLF001  the number of checks shows only in their time
    write(folder, USERS, HEADERS)
    middleware.apply(middleware.load())
    assert middleware._users is users  # noqa: SLF001  as above
    write(folder, OTHER_USERS)
    middleware.apply(middleware.load())
    assert ask(middleware, "/", login("canary")).status == 401


def test_an_unexpected_error_fails_the_reload_but_does_not_end_the_watch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    middleware, load = opened(folder, USERS), web_config.load

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def break_down() -> None:
        monkeypatch.setattr(web_config, "load", fail)
        write(folder, HEADERS)

    def recover() -> None:
        assert middleware.last_reload_successful is False
        monkeypatch.setattr(web_config, "load", load)

    lines = watched(middleware, (break_down, says(1)), (recover, lambda lines: RELOADED in lines))
    assert set(lines) == {REFUSED, RELOADED}


def test_files_that_stay_are_not_read_again(folder: Path) -> None:
    middleware = opened(folder, TLS, USERS)
    before = middleware.config
    assert watched(middleware, (lambda: None, a_while())) == []
    assert middleware.config is before


def test_a_broken_file_keeps_the_old_one_and_is_logged_once(folder: Path) -> None:
    middleware = opened(folder, USERS)
    lines = watched(
        middleware,
        (lambda: write(folder, "basic_auth_users: {alice: canary}\n"), says(1)),
        (lambda: None, a_while()),
        ((folder / "web.yml").unlink, says(2)),
        (lambda: None, a_while()),
        (lambda: write(folder, HEADERS), says(3)),
    )
    assert lines == [REFUSED, REFUSED, RELOADED]
    assert ask(middleware, "/").status == 200


def test_a_file_that_cannot_be_read_again_shows_until_it_can(folder: Path) -> None:
    middleware = opened(folder, USERS)
    good = (folder / "web.yml").read_bytes()
    seen = [WebMiddleware().last_reload_successful, middleware.last_reload_successful]

    def replace(text: bytes) -> None:
        seen.append(middleware.last_reload_successful)
        (folder / "new.yml").write_bytes(text)
        (folder / "new.yml").rename(folder / "web.yml")

    watched(middleware, (lambda: replace(b"nonsense"), says(1)), (lambda: replace(good), says(2)))
    assert [*seen, middleware.last_reload_successful] == [None, True, True, False, True]


def test_files_that_are_restored_are_not_a_failure(folder: Path) -> None:
    middleware = opened(folder, USERS)

    def back() -> None:
        (folder / "kept.yml").rename(folder / "web.yml")

    def swap() -> None:
        (folder / "web.yml").rename(folder / "kept.yml")
        (folder / "web.yml").write_text("nonsense")

    lines = watched(middleware, (swap, says(1)), (back, a_while()))
    assert lines[0] == REFUSED
    assert middleware.last_reload_successful


def test_users_stay_while_a_file_is_broken(folder: Path) -> None:
    middleware = opened(folder, USERS)
    assert watched(middleware, (lambda: (folder / "web.yml").write_text(""), says(1))) == [REFUSED]
    assert ask(middleware, "/").status == 401
    assert ask(middleware, "/", login("canary")).status == 200


def test_a_file_that_is_being_written_is_not_read(folder: Path) -> None:
    """Half of the file is a valid file without users."""
    middleware = opened(folder, HEADERS, USERS)
    lengths = iter(range(100))

    def written(_: Lines) -> bool:
        length = next(lengths, None)
        (folder / "web.yml").write_text(HEADERS + ("#" * length if length is not None else USERS))
        assert middleware.config.basic_auth_users
        return length is None

    watched(middleware, (lambda: None, written), (lambda: None, a_while()))
    assert ask(middleware, "/").status == 401


def test_a_new_certificate_is_taken_and_one_without_its_key_is_not(folder: Path) -> None:
    middleware = opened(folder, TLS)
    lines = watched(
        middleware,
        (lambda: shutil.copy(PAIR / "client.pem", folder / "server.pem"), says(1)),
        (lambda: shutil.copy(PAIR / "client.key", folder / "server.key"), says(2)),
    )
    assert lines == [REFUSED, RELOADED]


def test_a_file_that_comes_late_is_found(folder: Path) -> None:
    middleware = opened(folder, TLS)
    later = TLS.replace("server.pem", "late.pem")
    lines = watched(
        middleware,
        (lambda: write(folder, later), says(1)),
        (lambda: shutil.copy(PAIR / "server.pem", folder / "late.pem"), says(2)),
    )
    assert lines == [REFUSED, RELOADED]


def test_a_secret_that_is_swapped_by_a_link_is_noticed(folder: Path) -> None:
    """As in Kubernetes: the file is a link into a folder that is itself a link."""
    for name, text in (("one", USERS), ("two", OTHER_USERS + HEADERS)):
        (folder / name).mkdir()
        (folder / name / "web.yml").write_text(text)
    (folder / "..data").symlink_to("one")
    (folder / "web.yml").symlink_to("..data/web.yml")
    middleware = WebMiddleware(folder / "web.yml")

    def swap() -> None:
        (folder / "..data_tmp").symlink_to("two")
        (folder / "..data_tmp").rename(folder / "..data")

    assert watched(middleware, (swap, says(1))) == [RELOADED]
    assert ask(middleware, "/", login("changed")).status == 200


def test_a_burst_is_allowed_at_once_and_then_one_each_interval() -> None:
    clock = ManualClock(1000.0)
    limiter = RateLimiter(2.0, 3, clock)
    assert [limiter.allows() for _ in range(5)] == [True, True, True, False, False]
    clock.at += 2.0
    assert [limiter.allows(), limiter.allows()] == [True, False]
    clock.at += 1.0
    assert not limiter.allows()
    clock.at += 1.0
    assert limiter.allows()
    clock.at += 3600.0
    assert [limiter.allows() for _ in range(4)] == [True, True, True, False]


def test_without_an_interval_all_are_allowed_and_without_a_burst_none_is() -> None:
    assert all(RateLimiter(0, 0).allows() for _ in range(100))
    assert not RateLimiter(1.0, 0).allows()
