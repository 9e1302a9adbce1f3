"""Requests to the Creatify API: paced, retried once, and bounded by one deadline for each fetch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import urljoin, urlsplit

import msgspec
import requests

from creatify_exporter import trace
from creatify_exporter.config.schema import Fetch, Workspace
from creatify_exporter.creatify.decoder import BYTE_ORDER_MARK, Batch, Decoder, shape
from creatify_exporter.creatify.transport import Body, Transport
from creatify_exporter.errors import ConfigError, FetchError, RateLimited
from creatify_exporter.lists import TaskList

BALANCE_PATH: Final = "/api/remaining_credits/"

_RETRIED: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_MAX_REDIRECTS: Final = 5
_MAX_BALANCE_BYTES: Final = 64 * 1024
_MINUTE: Final = 60.0
# Seconds between any request and the next patient one.
_SPACING: Final = 1.0
# Requests a minute reserved for those that cannot wait: a list every 14 s, the balance, a retry.
_RESERVED: Final = 6


class Client:
    """Fetches for one workspace; one fetch at a time, because a deadline shuts all connections of the client.

    A fetch that hangs does not count: its deadline has passed before another one begins.

    `clock` returns seconds since the epoch. `pacer` counts the requests; a `patient` client waits until it allows one.
    Every failure is a `FetchError` without a secret in its text and without another exception attached: exceptions of
    `requests` hold the headers that were sent.
    """

    def __init__(
        self,
        workspace: Workspace,
        limits: Fetch,
        clock: Callable[[], float] = time.time,
        *,
        pacer: "Pacer | None" = None,
        patient: bool = False,
    ) -> None:
        self._workspace, self._limits, self._clock = workspace, limits, clock
        self._pacer, self._patient = pacer or Pacer(limits.max_requests_per_minute), patient
        self._transport = Transport(workspace)

    def fetch_list(self, decoder: Decoder) -> Iterator[Batch]:
        """Yield the tasks of all pages as they arrive; the list is complete when the iterator ends."""
        task_list, limit = decoder.task_list, self._limits.max_body
        url: str | None = self._workspace.base_url + task_list.path
        visited = set()
        with self._deadline() as deadline:
            while url:
                visited.add(url)
                with self._body(url, deadline, limit, decoder.received, task_list) as (date, body):
                    yield from decoder.batches(body, answered_at=date)
                url = _same_origin(url, decoder.next_page) if decoder.next_page else None
                if url in visited:
                    raise FetchError("invalid_body", "the pages of the list form a loop")

    def fetch_balance(self) -> float:
        """Return the workspace's balance in credits."""
        url = self._workspace.base_url + BALANCE_PATH
        with self._deadline() as deadline, self._body(url, deadline, _MAX_BALANCE_BYTES) as (_, body):
            answer = body.readall().removeprefix(BYTE_ORDER_MARK)
            try:
                return msgspec.json.decode(answer, type=_Balance, strict=False).remaining_credits
            except (ValueError, RecursionError):
                raise FetchError("invalid_body", f"expected remaining_credits, got {shape(answer)}") from None

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close()

    @contextmanager
    def _body(
        self, url: str, deadline: float, limit: int, before: int = 0, task_list: TaskList | None = None
    ) -> Iterator[tuple[float | None, Body]]:
        """Yield the date and the body of an answer with status 200; `limit` bounds its bytes, `before` included."""
        began = time.monotonic()
        with self._get(url, deadline, task_list) as response:
            body = Body(response, deadline, limit, before)
            try:
                yield _http_date(response.headers.get("Date", "")), body
            finally:
                seconds = round(time.monotonic() - began, 3)
                size = body.received - before
                trace.step("request", url=_without_query(url), status=200, bytes=size, seconds=seconds)

    def _get(self, url: str, deadline: float, task_list: TaskList | None) -> requests.Response:
        """Return a response with status 200 and its body unread."""
        # The only URL of a chain of redirects that is ever shown: an API may put a key into the others.
        shown_url = _without_query(url)
        for _ in range(_MAX_REDIRECTS):
            response = self._send(url, deadline, shown_url)
            if not response.is_redirect:
                _check_status(response, self._clock(), urlsplit(shown_url).path, task_list)
                return response
            response.close()
            url = _same_origin(url, _escaped(response.headers["Location"]))
        raise FetchError("redirect", f"stopped after {_MAX_REDIRECTS} redirects")

    def _send(self, url: str, deadline: float, shown_url: str) -> requests.Response:
        """Send a request, and a second time if the connection or a gateway failed."""
        try:
            answer = self._try(url, deadline, shown_url)
            if answer.status_code not in _RETRIED or time.monotonic() >= deadline:
                return answer
            answer.close()
        except FetchError as error:
            if error.cause != "connection" or time.monotonic() >= deadline:
                raise
        return self._try(url, deadline, shown_url)

    def _try(self, url: str, deadline: float, shown_url: str) -> requests.Response:
        began = time.monotonic()
        try:
            self._pace(deadline)
            answer = self._transport.get(url, self._credentials(), deadline)
        except FetchError as error:
            trace.step("request failed", url=shown_url, cause=error.cause, seconds=round(time.monotonic() - began, 3))
            raise
        if answer.status_code != HTTPStatus.OK:
            seconds = round(time.monotonic() - began, 3)
            trace.step("request", url=shown_url, status=answer.status_code, bytes=0, seconds=seconds)
        return answer

    def _pace(self, deadline: float) -> None:
        """Wait until a patient request may be sent; count the request."""
        while self._patient and (delay := self._pacer.request_turn()) > 0:
            if time.monotonic() + delay >= deadline:
                raise FetchError("timeout", "the pages of this list exceed fetch.max_requests_per_minute")
            time.sleep(delay)
        self._pacer.note(patient=self._patient)

    def _credentials(self) -> dict[str, str]:
        try:
            return {"X-API-ID": self._workspace.api_id.read(), "X-API-KEY": self._workspace.api_key.read()}
        except ConfigError as error:
            raise FetchError("auth", str(error)) from None

    @contextmanager
    def _deadline(self) -> Iterator[float]:
        """Bound the block by `fetch.timeout`; yield its end on the monotonic clock."""
        seconds = self._limits.timeout
        end = time.monotonic() + seconds
        failure: FetchError | None = None
        with self._transport.limit(seconds):
            try:
                yield end
            except FetchError as error:
                failure = error
                if time.monotonic() >= end:
                    # The transport broke the connection, whatever the error says.
                    failure = FetchError("timeout", f"no complete answer within {seconds:g} s (fetch.timeout)")
                # The decoder's exceptions hold the body that it refused.
                failure.__context__ = None
        if failure:
            raise failure


class Pacer:
    """Counts the requests of one workspace, and returns how long those that can wait ("patient" ones) must wait.

    Creatify publishes no limit, and has many lists. A patient request is sent a second after any other request. No
    minute has more than `max_per_minute` requests while those that cannot wait ("prompt" ones) leave room; if they
    leave none, one patient request a minute is sent all the same. `monotonic` returns seconds.
    """

    def __init__(self, max_per_minute: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.max_per_minute, self._monotonic = max_per_minute, monotonic
        self._lock = threading.Lock()
        self._patient, self._prompt = (deque[float](maxlen=max_per_minute) for _ in range(2))
        self._waiting_since: float | None = None

    def note(self, *, patient: bool) -> None:
        """Count a request that is sent now; a patient one when `request_turn` has returned 0."""
        with self._lock:
            (self._patient if patient else self._prompt).append(self._monotonic())
            if patient:
                self._waiting_since = None

    def request_turn(self) -> float:
        """Ask to send a patient request; return how many seconds it has to wait, 0 if it may be sent now.

        The first call after a patient request begins the wait for the next one, which the later calls share: a queue
        asks before it starts a fetch, and the client asks again before it sends the request.
        """
        with self._lock:
            now = self._monotonic()
            if self._waiting_since is None:
                self._waiting_since = now
            for sent in (self._patient, self._prompt):
                while sent and sent[0] <= now - _MINUTE:
                    sent.popleft()
            return max(0.0, self._spaced_from(now, self._waiting_since) - now, self._room_from(now) - now)

    def _spaced_from(self, now: float, waiting_since: float) -> float:
        patient, prompt = (sent[-1] + _SPACING if sent else now for sent in (self._patient, self._prompt))
        # Prompt requests less than a second apart must not delay a patient one forever.
        return max(patient, min(prompt, waiting_since + 2 * _SPACING))

    def _room_from(self, now: float) -> float:
        room = max(1, self.max_per_minute - max(_RESERVED, len(self._prompt)))
        return self._patient[-room] + _MINUTE if len(self._patient) >= room else now


class _Balance(msgspec.Struct):
    # The bounds exclude "nan" and "inf".
    remaining_credits: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


def _check_status(response: requests.Response, now: float, path: str, task_list: TaskList | None) -> None:
    """Raise `FetchError` if the status is not 200; if only this list may be refused, its text says what to do."""
    status = response.status_code
    if status == HTTPStatus.OK:
        return
    response.close()
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else "unknown status"
    text = f"the API answered {status} {phrase}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited(text, _retry_after(response, now))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        text += ": check the API id and key"
        if task_list and status == HTTPStatus.FORBIDDEN:
            name = task_list.api
            text += f"; if other lists work, the plan lacks {name} ({task_list.path}): remove it from lists"
        raise FetchError("auth", text)
    text += f" for {path}"
    if task_list and status == HTTPStatus.NOT_FOUND:
        name = task_list.api
        text += f"; there is no list at {task_list.path}: remove {name} from lists, or set its new path"
    raise FetchError("http_status", text)


def _without_query(url: str) -> str:
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _retry_after(response: requests.Response, now: float) -> float | None:
    """Return the Retry-After of a 429 in seconds, None without one; it may be a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    moment = _http_date(value)
    return None if moment is None else max(0.0, moment - now)


def _http_date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _escaped(location: str) -> str:
    """Percent-encode the bytes of a header that are not ASCII; `http.client` has read them as Latin-1."""
    return "".join(character if character.isascii() else f"%{ord(character):02X}" for character in location)


def _same_origin(url: str, link: str) -> str:
    """Resolve a link; raise `FetchError` if it leaves the origin, because the keys must not go anywhere else."""
    try:
        target = urljoin(url, link)
        same = _origin(target) == _origin(url)
    except ValueError:
        same = False
    if not same:
        raise FetchError("redirect", "the API redirects or links to another origin; the keys are not sent there")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
