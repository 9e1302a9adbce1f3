"""What is asked of the Creatify API, within one deadline for everything, and what its answers mean."""

import time
from collections.abc import Callable, Iterator, Mapping
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
from creatify_exporter.creatify.buffer import Buffer, Source
from creatify_exporter.creatify.decoder import BYTE_ORDER_MARK, Batch, Decoder
from creatify_exporter.creatify.pacer import Pacer
from creatify_exporter.creatify.shape import shape
from creatify_exporter.creatify.transport import Body, Transport
from creatify_exporter.errors import ConfigError, FetchError, RateLimited
from creatify_exporter.lists import TaskList

BALANCE_PATH: Final = "/api/remaining_credits/"

_NO_ADVICE: Final[Mapping[int, str]] = {}
_RETRIED: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_MAX_REDIRECTS: Final = 5
_MAX_BALANCE_BYTES: Final = 64 * 1024


class Client:
    """Fetches for one workspace; one fetch at a time, since a deadline ends all connections of a client.

    `clock` returns seconds since the epoch. `pacer` counts the requests; those of a `patient` client wait for it. Every
    failure is a `FetchError` whose text holds no secret, and that carries no other exception: those of `requests` know
    the headers that were sent.
    """

    def __init__(
        self,
        workspace: Workspace,
        limits: Fetch,
        clock: Callable[[], float] = time.time,
        *,
        pacer: Pacer | None = None,
        patient: bool = False,
    ) -> None:
        self._workspace, self._limits, self._clock = workspace, limits, clock
        self._pacer, self._patient = pacer or Pacer(limits.max_requests_per_minute), patient
        self._transport = Transport(workspace)

    def fetch_list(self, decoder: Decoder) -> Iterator[Batch]:
        """Yield the tasks of all pages while they are fetched; the list is complete when the iterator ends."""
        url: str | None = self._workspace.base_url + decoder.task_list.path
        advice = _advice(decoder.task_list)
        visited = set()
        with self._deadline() as deadline:
            while url:
                visited.add(url)
                most, before = self._limits.max_body, decoder.received
                with self._body(url, deadline, most, before, advice) as (date, body):
                    for batch in decoder.batches(body):
                        yield batch._replace(date=date)
                url = _same_origin(url, decoder.next_page) if decoder.next_page else None
                if url in visited:
                    raise FetchError("invalid_body", "the pages of the list lead back to one that was read already")

    def fetch_balance(self) -> float:
        """Return the workspace's balance in credits."""
        url = self._workspace.base_url + BALANCE_PATH
        with self._deadline() as deadline, self._body(url, deadline, _MAX_BALANCE_BYTES, 0) as (_, source):
            buffer = Buffer(_MAX_BALANCE_BYTES)
            while buffer.fill(source):
                pass
            body = bytes(buffer.content).removeprefix(BYTE_ORDER_MARK)
            try:
                return msgspec.json.decode(body, type=_Balance, strict=False).remaining_credits
            except (ValueError, RecursionError):
                raise FetchError("invalid_body", f"expected remaining_credits, got {shape(body)}") from None

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close()

    @contextmanager
    def _body(
        self, url: str, deadline: float, most: int, before: int, advice: Mapping[int, str] = _NO_ADVICE
    ) -> Iterator[tuple[float | None, Source]]:
        """Yield the date of an answer with status 200, and its body."""
        began = time.monotonic()
        with self._get(url, deadline, advice) as response:
            body = Body(response, deadline, most, before)
            try:
                yield _http_date(response.headers.get("Date", "")), body
            finally:
                seconds = round(time.monotonic() - began, 3)
                trace.step("request", url=_without_query(url), status=200, bytes=body.received, seconds=seconds)

    def _get(self, url: str, deadline: float, advice: Mapping[int, str]) -> requests.Response:
        """Return a response with status 200 and its body unread; `advice` says what to do about other statuses."""
        # Of redirects only this one is ever shown: in others an API may spell a key in any way.
        asked = _without_query(url)
        for _ in range(_MAX_REDIRECTS):
            response = self._send(url, deadline, asked)
            if not response.is_redirect:
                _check_status(response, self._clock(), urlsplit(asked).path, advice)
                return response
            response.close()
            url = _same_origin(url, _escaped(response.headers["Location"]))
        raise FetchError("redirect", f"redirected {_MAX_REDIRECTS} times; no more are followed")

    def _send(self, url: str, deadline: float, asked: str) -> requests.Response:
        """Send one request, and once more if a connection or a gateway failed it."""
        answer = self._try(url, deadline, asked)
        retry = answer.cause == "connection" if isinstance(answer, FetchError) else answer.status_code in _RETRIED
        if retry and time.monotonic() < deadline:
            if isinstance(answer, requests.Response):
                answer.close()
            answer = self._try(url, deadline, asked)
        if isinstance(answer, FetchError):
            raise answer
        return answer

    def _try(self, url: str, deadline: float, asked: str) -> requests.Response | FetchError:
        began = time.monotonic()
        try:
            self._pace(deadline)
            answer = self._transport.get(url, self._credentials(), deadline)
        except FetchError as error:
            trace.step("request failed", url=asked, cause=error.cause, seconds=round(time.monotonic() - began, 3))
            return error
        if answer.status_code != HTTPStatus.OK:
            seconds = round(time.monotonic() - began, 3)
            trace.step("request", url=asked, status=answer.status_code, bytes=0, seconds=seconds)
        return answer

    def _pace(self, deadline: float) -> None:
        """Wait for the turn of a request that can wait, and note it."""
        while self._patient and (delay := self._pacer.delay()) > 0:
            if time.monotonic() + delay >= deadline:
                raise FetchError("timeout", "the pages of this list do not fit into fetch.max_requests_per_minute")
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
        end = time.monotonic() + self._limits.timeout
        failure: FetchError | None = None
        with self._transport.limit(self._limits.timeout):
            try:
                yield end
            except FetchError as error:
                # The decoder's exceptions know the body that was refused.
                error.__context__ = None
                failure = self._explained(error, end)
        if failure:
            raise failure

    def _explained(self, error: FetchError, end: float) -> FetchError:
        if time.monotonic() < end:
            return error
        # Whatever it looks like: it was the transport that broke the connection.
        return FetchError("timeout", f"no complete answer within {self._limits.timeout:g} s (fetch.timeout)")


class _Balance(msgspec.Struct):
    # Bounded, so that neither "nan" nor "inf" is a balance.
    remaining_credits: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


def _advice(task_list: TaskList) -> Mapping[int, str]:
    """Return what to do if a list is refused, perhaps alone: a plan may lack a product, and paths have moved before."""
    name, path = task_list.api, task_list.path
    return {
        HTTPStatus.FORBIDDEN: f"if other lists work, the plan lacks {name} ({path}): remove it from lists",
        HTTPStatus.NOT_FOUND: f"there is no list at {path}: remove {name} from lists, or give the path that it has now",
    }


def _check_status(response: requests.Response, now: float, path: str, advice: Mapping[int, str]) -> None:
    status = response.status_code
    if status == HTTPStatus.OK:
        return
    response.close()
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else "unknown status"
    said = f"the API answered {status} {phrase}"
    advised = [advice[status]] if status in advice else []
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise FetchError("auth", "; ".join([f"{said}: check the API id and key", *advised]))
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited(said, _retry_after(response, now))
    raise FetchError("http_status", "; ".join([f"{said} for {path}", *advised]))


def _without_query(url: str) -> str:
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _retry_after(response: requests.Response, now: float) -> float | None:
    """Return how many seconds a 429 asks to wait; it may be written as seconds or as a date (RFC 9110, 10.2.3)."""
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
    """Escape what is not ASCII in a header byte by byte, whatever its encoding; `http.client` read it as Latin-1."""
    return "".join(character if character.isascii() else f"%{ord(character):02X}" for character in location)


def _same_origin(url: str, link: str) -> str:
    """Resolve a link; the keys go nowhere but to the origin that they were meant for."""
    try:
        target = urljoin(url, link)
        same = _origin(target) == _origin(url)
    except ValueError:
        same = False
    if not same:
        raise FetchError("redirect", "the API points to another origin, which does not get the keys")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
