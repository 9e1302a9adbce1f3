"""Reloads the configuration: on request by a client or SIGHUP, and when its files change."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import structlog

from creatify_exporter import log
from creatify_exporter.config import directory, file
from creatify_exporter.config.schema import Config
from creatify_exporter.errors import ConfigError
from creatify_exporter.exporter import Exporter
from creatify_exporter.web.middleware import WebMiddleware
from creatify_exporter.web.web_config import Files, Loaded

_log = structlog.get_logger()
_T = TypeVar("_T")


class Reloader:
    """Reloads the configuration of the exporter and of the middleware; if it is refused, the old one stays in effect.

    `load` reads it and raises `ConfigError`. `state` is the state of the file `path` before it was first read. The file
    is checked every `interval` seconds; 0 means only on request.
    """

    def __init__(  # noqa: PLR0913 - what is reloaded, from where, how often
        self,
        exporter: Exporter,
        load: Callable[[], Config],
        middleware: WebMiddleware,
        path: Path | None = None,
        state: file.State | None = None,
        *,
        interval: float = 0.0,
    ) -> None:
        self._exporter, self._load, self._middleware = exporter, load, middleware
        self._path, self._state, self._interval = path, state, interval
        self._refused = ""
        self._lock = asyncio.Lock()
        # asyncio holds tasks weakly: without another reference, one may be garbage-collected before it ends.
        self._tasks: set[asyncio.Task[str]] = set()

    def begin(self, logged: str = "") -> asyncio.Task[str]:
        """Reload in a task, which returns the problems (empty: none), and logs them unless they equal `logged`."""
        task = asyncio.get_running_loop().create_task(self._reload(logged))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def watches(self) -> Iterator[Coroutine[None, None, None]]:
        """Yield the coroutines that watch files until they are cancelled.

        A change is reloaded once two checks find the same state, because a file may be half written. A refused
        configuration is tried again at each check: what it lacks may appear without a change to its own files.
        """
        if self._path and self._interval:
            yield self._watch(self._path)
        if self._middleware.loaded.files:
            yield self.watch_web_configuration()

    async def _watch(self, path: Path) -> None:
        async for now, is_settled in _looks(lambda: self._look(path), self._interval):
            if is_settled and (self._refused or now != self._read_states()):
                await self.begin(logged=self._refused)

    async def watch_web_configuration(self, interval: float = 1.0) -> None:
        """Reload the web configuration alone when its files change."""
        refused = ""
        async for now, is_settled in _looks(self._look_at_web_configuration, interval):
            if now == self._middleware.loaded.files:
                self._middleware.last_reload_successful, refused = True, ""
            elif is_settled:
                refused = await self._try(self._apply_web_configuration, "web configuration", refused)

    def _look(self, path: Path) -> list[object]:
        groups = self._exporter.config.workspaces_from
        return [file.state(path), *(directory.state(group.directory.path) for group in groups)]

    def _read_states(self) -> list[object]:
        """Return what `_look` would have returned when the configuration was read."""
        return [self._state, *(group.directory.state for group in self._exporter.config.workspaces_from)]

    def _look_at_web_configuration(self) -> Files:
        return {path: file.state(path) for path in self._middleware.loaded.files}

    async def _reload(self, logged: str) -> str:
        self._refused = await self._try(self._apply, "configuration", logged)
        if self._refused:
            self._exporter.reload_failed()
        return self._refused

    async def _try(self, apply: Callable[[], Awaitable[None]], name: str, logged: str) -> str:
        """Apply a configuration; return its problems (empty: none), and log them unless they equal `logged`."""
        event = f"{name} not reloaded, the old one stays in effect"
        answer = f"the {name} was not reloaded, the old one stays in effect"
        # One at a time, in the order of the requests, so that the latest one wins.
        async with self._lock:
            try:
                await apply()
            except ConfigError as error:
                answer += f":\n{error}\n"
                if answer != logged:
                    for problem in error.problems:
                        _log.error(event, problem=problem)
            # A bug in the exporter must neither look like success nor end the watch over the files.
            except Exception:  # noqa: BLE001 - as above
                answer += "; the exporter's log says why\n"
                if answer != logged:
                    _log.exception(event)
            else:
                return ""
            return answer

    async def _apply_web_configuration(self) -> None:
        self._middleware.apply(await asyncio.to_thread(self._middleware.load))

    async def _apply(self) -> None:
        state, config, web = await asyncio.to_thread(self._read)
        # Warnings compare keys, and so read them: if a key cannot be read, the whole configuration is refused.
        warnings = await asyncio.to_thread(lambda: (*config.warnings, *web.config.warnings))
        self._exporter.reload(config)
        self._middleware.apply(web)
        self._state = state
        log.warn(warnings)
        _log.info("configuration reloaded", workspaces=len(self._exporter.targets))

    def _read(self) -> tuple[file.State | None, Config, Loaded]:
        # The state first, so that a change during the read is noticed later.
        state = file.state(self._path) if self._path else None
        return state, self._load(), self._middleware.load()


async def _looks(look: Callable[[], _T], interval: float) -> AsyncIterator[tuple[_T, bool]]:
    """Every `interval` seconds, yield what `look` returns and whether it is the same as before.

    If not, a file may be half written.
    """
    before = None
    while True:
        await asyncio.sleep(interval)
        now = await asyncio.to_thread(look)
        yield now, now == before
        before = now
