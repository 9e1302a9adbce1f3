"""The commands, which run once the command line is parsed."""

import argparse
import asyncio
import os
import resource
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import generate_latest

from creatify_exporter import __version__, live, log, redaction
from creatify_exporter.config import file, template
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.load import KEY_VARIABLES, USUAL_FILE, ledger_at, load
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.schema import Config, Fetch, LedgerSettings, ListSettings, Workspace
from creatify_exporter.config.url import LedgerUrl
from creatify_exporter.errors import ConfigError, LedgerRefused
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.fetcher import GRACE
from creatify_exporter.ledger import maintenance, report, sqlite, sqlite_file
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.store import Store
from creatify_exporter.lists import LISTS
from creatify_exporter.web.app import Application, RouteSettings
from creatify_exporter.web.listener import inherited, listen
from creatify_exporter.web.middleware import WebMiddleware
from creatify_exporter.web.reloader import Reloader

_log = structlog.get_logger()


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code; raise ExporterError for an error that the user can fix."""
    log.configure(arguments.log_level, arguments.log_format)
    return _COMMANDS[arguments.command](arguments) or 0


def _serve(arguments: argparse.Namespace) -> None:
    if arguments.demo:
        _serve_demo(arguments)
    else:
        _run_server(arguments, lambda: _load_config(arguments))


def _serve_demo(arguments: argparse.Namespace) -> None:
    """Serve the metrics of a simulated account, with a temporary ledger."""
    from creatify_exporter.simulator import demo_simulator, incidents  # noqa: PLC0415  loaded only if needed

    with demo_simulator() as simulator, tempfile.TemporaryDirectory(prefix="creatify-exporter-") as directory:
        workspace = Workspace(
            name="default",
            api_id=Credential(simulator.api_id),
            api_key=Credential(simulator.api_key),
            base_url=simulator.url,
            # Frequent fetches: people watch a demo, and want to see numbers change.
            lists=tuple(
                ListSettings(name=api, min_interval=None if LISTS[api].min_interval is None else 5.0)
                for api in simulator.served()
            ),
            # Without a renewal day: the simulated balance is refilled every midnight, more often than any plan renews.
            plan=Plan(credits=100_000, price_per_credit=0.15, currency="USD"),
        )
        demo = Config(
            workspaces=(workspace,),
            fetch=Fetch(min_interval=1.0, max_requests_per_minute=600),
            ledger=LedgerSettings(url=LedgerUrl(f"sqlite:///{directory}/ledger.db")),
        )
        accounts = [served.account for served in simulator.served().values()]
        _run_server(arguments, lambda: demo, incidents(accounts, time.time()))


def _run_server(arguments: argparse.Namespace, load: Callable[[], Config], incidents: Iterable[object] = ()) -> None:
    config_state = file.state(arguments.config_file) if arguments.config_file else None
    loaded, middleware = _load_both(load, lambda: WebMiddleware(arguments.web_config_file, os.environ))
    # The user did not write the configuration of the demo.
    log.warn((*(() if arguments.demo else loaded.warnings), *middleware.config.warnings))
    _raise_file_limit()
    sockets = (
        inherited(os.environ) if arguments.web_systemd_socket else listen(arguments.web_listen_address or [":10081"])
    )
    process_metrics = not arguments.web_disable_exporter_metrics
    with closing(Exporter(loaded, _open_ledger(loaded), process_metrics=process_metrics)) as exporter:
        interval = arguments.config_auto_reload_interval
        reloader = Reloader(exporter, load, middleware, arguments.config_file, config_state, interval=interval)
        settings = RouteSettings(
            telemetry_path=arguments.web_telemetry_path,
            external_url=arguments.web_external_url,
            route_prefix=arguments.web_route_prefix,
            max_requests=arguments.web_max_requests,
        )
        application = Application(exporter, middleware, reloader, settings)
        for address, local in map(_addresses, sockets):
            _log.info(
                "listening",
                address=address,
                url=f"{'https' if middleware.loaded.context else 'http'}://{local}/",
                version=__version__,
                config="demo" if arguments.demo else str(arguments.config_file or "environment"),
                ledger=loaded.ledger.url.masked,
                workspaces=len(loaded.workspaces),
                web=middleware.config.summary,
            )
        for incident in incidents:
            _log.info("incident", what=str(incident))
        asyncio.run(application.run(sockets))
        # The ledger is about to close: a request to stop or reload no longer has any effect.
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
    _log.info("stopped")


def _addresses(listening: socket.socket) -> tuple[str, str]:
    """Return the address of a socket, and the address for a browser on this machine."""
    host, port, *_ = listening.getsockname()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return address, f"localhost:{port}" if host in ("0.0.0.0", "::") else address  # noqa: S104  a comparison


def _raise_file_limit() -> None:
    """Raise the limit of open files as far as possible: a thousand workspaces keep two thousand connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems allow less than their hard limit.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _load_both(
    load: Callable[[], Config], open_middleware: Callable[[], WebMiddleware]
) -> tuple[Config, WebMiddleware]:
    """Return the results of both; ConfigError has the problems of both."""
    try:
        loaded = load()
    except ConfigError as error:
        try:
            open_middleware()
        except ConfigError as more:
            raise ConfigError([*error.problems, *more.problems]) from None
        raise
    return loaded, open_middleware()


def _init(arguments: argparse.Namespace) -> None:
    """Write a first configuration, and print what to do next."""
    path = arguments.config_file or USUAL_FILE
    plan = {name: getattr(arguments, name) for name in Plan.__struct_fields__}
    answers = template.Answers(
        workspace=arguments.workspace,
        api_id_file=arguments.api_id_file,
        api_key_file=arguments.api_key_file,
        plan={name: value for name, value in plan.items() if value is not None},
        ledger_url=arguments.ledger_url,
    )
    template.write(path, answers)
    for key_file in dict.fromkeys([arguments.api_id_file, arguments.api_key_file]):
        if key_file and not key_file.exists():
            print(f"creatify-exporter: warning: {key_file} does not exist yet; put the key into it", file=sys.stderr)
    quoted = shlex.quote(str(path))
    print(f"Wrote {path}. Next:")
    keys = {"CREATIFY_API_ID": arguments.api_id_file, "CREATIFY_API_KEY": arguments.api_key_file}
    if variables := [f"{name}=..." for name, key_file in keys.items() if not key_file]:
        print("  export", *variables)
    print(f"  creatify-exporter check --config.file {quoted}")
    print(f"  creatify-exporter check --live --config.file {quoted}")
    print(f"  creatify-exporter --config.file {quoted}")


def _check(arguments: argparse.Namespace) -> int:
    """Print warnings and a summary of the configuration; with --live, return 1 if a fetch failed."""
    if _only_web_is_configured(arguments) and not arguments.live:
        _print_web_configuration(WebMiddleware(arguments.web_config_file, os.environ))
        return 0
    web = arguments.web_config_file
    loaded, middleware = _load_both(
        lambda: _check_ledger(_load_config(arguments)), lambda: WebMiddleware(web, os.environ)
    )
    for warning in loaded.warnings:
        print(f"warning: {warning}")
    print(f"the configuration is valid: {', '.join(each.name for each in loaded.workspaces)}")
    print(f"ledger: {loaded.ledger.url.masked}{_new_folder(loaded.ledger.url.path)}")
    if web:
        _print_web_configuration(middleware)
    return _print_missing(live.check(loaded)) if arguments.live else 0


def _new_folder(path: Path | None) -> str:
    folder = path.absolute().parent if path else None
    return f" (its folder {folder} is created at the start)" if folder and not folder.exists() else ""


def _check_ledger(loaded: Config) -> Config:
    """Return the configuration; ConfigError if its ledger is an unusable file. The file is not changed."""
    try:
        if loaded.ledger.url.path:
            sqlite_file.inspect(loaded.ledger.url.path)
    except LedgerRefused as error:
        raise ConfigError([str(error)]) from None
    return loaded


def _only_web_is_configured(arguments: argparse.Namespace) -> bool:
    others = arguments.config_file or arguments.ledger_url or any(map(os.environ.get, KEY_VARIABLES))
    return bool(arguments.web_config_file) and not others


def _print_web_configuration(middleware: WebMiddleware) -> None:
    for warning in middleware.config.warnings:
        print(f"warning: {warning}")
    print(f"the web configuration is valid: {middleware.config.summary}")


def _dump(arguments: argparse.Namespace) -> int:
    """Print one scrape; return 1 if a fetch failed."""
    loaded = _load_config(arguments)
    log.warn(loaded.warnings)
    with closing(Exporter(loaded, _open_ledger(loaded, held_since=0.0))) as exporter:
        scrape = exporter.begin_scrape()
        wait(scrape.futures, timeout=loaded.fetch.timeout + GRACE)
        registry = exporter.collect(scrape, own=False)
        # In UTF-8, whatever the encoding of the terminal.
        sys.stdout.buffer.write(generate_latest(registry))
        sys.stdout.flush()
        return int(scrape.failed)


def _report(arguments: argparse.Namespace) -> None:
    loaded = _load_config(arguments, keys_needed=False)
    with closing(_open_to_read(loaded.ledger)) as store:
        plans = {workspace.name: workspace.plan for workspace in loaded.workspaces}
        report.write(store, plans, arguments.month, as_csv=arguments.csv)


def _show(arguments: argparse.Namespace) -> None:
    with _open_configured(arguments) as store:
        maintenance.show(store)


def _copy(arguments: argparse.Namespace) -> None:
    source, target = LedgerSettings(url=ledger_at(arguments.source)), LedgerSettings(url=ledger_at(arguments.target))
    if "memory:" in (source.url, target.url):
        raise ConfigError(["memory: a ledger in memory ends with its exporter; specify another ledger"])
    with closing(_open_to_read(source)) as read, closing(_open_store(target)) as written:
        maintenance.copy(read, written)


def _backup(arguments: argparse.Namespace) -> None:
    # A timer that times out must not leave a partial backup behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with _open_configured(arguments) as store:
        maintenance.backup(store, arguments.file)


def _forget(arguments: argparse.Namespace) -> None:
    if not (arguments.model or arguments.workspace):
        raise ConfigError(["ledger forget: nothing to forget; specify a model, or a workspace with --workspace"])
    loaded, scope = _load_config(arguments, keys_needed=False), maintenance.Scope(arguments.workspace, arguments.api)
    # Fails if the ledger does not exist; opening it for writing would create it.
    _open_to_read(loaded.ledger).close()
    with closing(_open_store(loaded.ledger)) as store:
        if arguments.model:
            maintenance.forget_model(store, arguments.model, scope)
        else:
            fetched = [(workspace.name, api) for workspace in loaded.workspaces for api in workspace.task_lists()]
            maintenance.forget_workspace(store, scope, fetched)


def _classify(arguments: argparse.Namespace) -> int:
    """Print the class of each failure reason, with its count, list and text. The ledger is not touched."""
    loaded = load(arguments.config_file, os.environ, ledger_url="memory:", keys_needed=arguments.live)
    classify, missing = rules(loaded).classify, list[str]()
    lines = (line.decode(errors="replace").rstrip("\r\n") for line in sys.stdin.buffer)
    failures = live.failures(loaded, missing) if arguments.live else ((classify(line), line) for line in lines)
    # A reason may quote an API key, or move the cursor of a terminal.
    counted = Counter((*names, log.printable(" ".join(redaction.mask(text).split()))) for *names, text in failures)
    print("count", *(("workspace", "list") if arguments.live else ()), "reason", "text", sep="\t")
    for columns, count in counted.most_common():
        print(count, *columns, sep="\t")
    return _print_missing(missing)


def _print_missing(missing: Sequence[str]) -> int:
    """Print why fetches failed, after the output of those that succeeded; return the exit code."""
    sys.stdout.flush()
    for each in missing:
        print(f"creatify-exporter: {each}", file=sys.stderr)
    return int(bool(missing))


def _simulate(arguments: argparse.Namespace) -> None:
    from creatify_exporter.simulator import serve  # noqa: PLC0415  loaded only if needed

    try:
        serve(
            arguments.listen,
            seed=arguments.seed,
            speed=arguments.speed,
            tasks=arguments.tasks,
            api_id=arguments.api_id,
            api_key=arguments.api_key,
            fail=dict(arguments.fail or []),
        )
    except ValueError as error:
        raise ConfigError([f"--fail: {error}"]) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([f"--listen {arguments.listen}: {reason}; choose another address or port"]) from None


def _load_config(arguments: argparse.Namespace, *, keys_needed: bool = True) -> Config:
    return load(arguments.config_file, os.environ, ledger_url=arguments.ledger_url, keys_needed=keys_needed)


def _open_ledger(loaded: Config, *, held_since: float | None = None) -> Ledger:
    return Ledger(_open_store(loaded.ledger), rules(loaded), held_since=held_since)


def _open_configured(arguments: argparse.Namespace) -> AbstractContextManager[Store]:
    """Open the configured ledger for reading."""
    return closing(_open_to_read(_load_config(arguments, keys_needed=False).ledger))


def _open_to_read(ledger: LedgerSettings) -> Store:
    """Open a ledger that outlives its exporter for reading."""
    if ledger.url == "memory:":
        raise ConfigError(["ledger.url memory: a ledger in memory ends with its exporter; specify another ledger"])
    return _open_store(ledger, read_only=True)


def _open_store(ledger: LedgerSettings, *, read_only: bool = False) -> Store:
    if not ledger.conninfo:
        return sqlite.SqliteStore(ledger.url.path, read_only=read_only)
    from creatify_exporter.ledger.postgresql import PostgresqlStore  # noqa: PLC0415  an extra

    return PostgresqlStore(ledger.conninfo, read_only=read_only)


_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int | None]]] = {
    "serve": _serve,
    "init": _init,
    "check": _check,
    "dump": _dump,
    "report": _report,
    "ledger show": _show,
    "ledger copy": _copy,
    "ledger backup": _backup,
    "ledger forget": _forget,
    "classify": _classify,
    "simulate": _simulate,
}
