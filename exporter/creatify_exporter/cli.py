"""The command line."""

import argparse
import asyncio
import ctypes
import io
import math
import os
import re
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog
from prometheus_client import generate_latest

from creatify_exporter import __version__, log
from creatify_exporter.config import schema as config
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.schema import Config
from creatify_exporter.creatify.client import Client
from creatify_exporter.creatify.reasons import Classifier
from creatify_exporter.errors import ConfigError, ExporterError
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.ledger import maintenance as upkeep
from creatify_exporter.ledger import report
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.store import Store
from creatify_exporter.web.app import Application, Settings
from creatify_exporter.web.listener import inherited, listen
from creatify_exporter.web.middleware import WebMiddleware

_INTERRUPTED: Final = 130  # 128 and the number of SIGINT, as shells have it

_LEVELS: Final = ("debug", "info", "warning", "error")

_MMAP_THRESHOLD: Final = -3  # malloc.h
_log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. A user's mistake gets one line on standard error, and 1."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names and reasons may hold what cannot be encoded
    try:
        log.configure(arguments.log_level, arguments.log_format)
        code = int(arguments.run(arguments) or 0)
        sys.stdout.flush()  # while its failure can be told
    except ConfigError as error:
        return _refused(error.problems)
    except ExporterError as error:
        return _refused([str(error)])
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        _abandon_output()
        return 0
    except OSError as error:  # no space left, for example
        _abandon_output()
        return _refused([str(error)])
    return code


def _abandon_output() -> None:
    """Keep Python from failing again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(problems: Iterable[str]) -> int:
    for problem in problems:
        print(f"creatify-exporter: {problem}", file=sys.stderr)
    return 1


def _serve(arguments: argparse.Namespace) -> None:
    if arguments.demo:
        _demonstrate(arguments)
    else:
        _run_server(arguments, lambda: _loaded(arguments))


def _demonstrate(arguments: argparse.Namespace) -> None:
    """Serve metrics of a simulated account, from a ledger that is thrown away."""
    from creatify_exporter.simulator import demo_simulator  # noqa: PLC0415 - only those who ask for it load it

    with demo_simulator() as simulator, tempfile.TemporaryDirectory(prefix="creatify-exporter-") as directory:
        workspace = config.Workspace(
            name="default",
            api_id=Credential(simulator.api_id),
            api_key=Credential(simulator.api_key),
            base_url=simulator.url,
        )
        demo = Config(
            workspaces=(workspace,),
            fetch=config.Fetch(min_interval=config.Seconds(1)),  # for those who look by hand
            ledger=config.Ledger(url=f"sqlite:///{directory}/ledger.db"),
        )
        _run_server(arguments, lambda: demo)


def _run_server(arguments: argparse.Namespace, load: Callable[[], Config]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    loaded, middleware = _both(load, lambda: WebMiddleware(arguments.web_config_file, os.environ))
    _warn((*loaded.warnings, *middleware.config.warnings))
    _allow_files()
    _give_memory_back()
    sockets = inherited(os.environ) if arguments.systemd_socket else listen(arguments.listen_address or [":10081"])
    process_metrics = not arguments.disable_exporter_metrics
    with closing(Exporter(loaded, _opened(loaded), process_metrics=process_metrics)) as exporter:
        application = Application(
            exporter,
            load,
            Settings(
                telemetry_path=arguments.telemetry_path,
                external_url=arguments.external_url,
                route_prefix=arguments.route_prefix,
                max_requests=arguments.max_requests,
            ),
            middleware,
        )
        for each in sockets:
            host, port, *_ = each.getsockname()
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            _log.info(
                "listening",
                address=address,
                version=__version__,
                workspaces=len(loaded.workspaces),
                web=middleware.config.summary,
            )
        asyncio.run(application.run(sockets))
    _log.info("stopped")


def _allow_files() -> None:
    """Take as many open files as the system gives: a thousand workspaces keep two thousand connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems give less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _give_memory_back() -> None:
    """Let large buffers go back to the system when they are freed.

    From the first one on, glibc would keep them, for each thread that had one: mallopt(3), M_MMAP_THRESHOLD.
    """
    with suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def _both(load: Callable[[], Config], open_middleware: Callable[[], WebMiddleware]) -> tuple[Config, WebMiddleware]:
    """Return what both make; ConfigError has the mistakes of both."""
    try:
        loaded = load()
    except ConfigError as error:
        try:
            open_middleware()
        except ConfigError as more:
            raise ConfigError([*error.problems, *more.problems]) from None
        raise
    return loaded, open_middleware()


def _check(arguments: argparse.Namespace) -> None:
    loaded, middleware = _both(lambda: _loaded(arguments), lambda: WebMiddleware(arguments.web_config_file, os.environ))
    for warning in (*loaded.warnings, *middleware.config.warnings):
        print(f"warning: {warning}")
    print(f"the configuration is valid: {', '.join(each.name for each in loaded.workspaces)}")
    if arguments.web_config_file:
        print(f"the web configuration is valid: {middleware.config.summary}")


def _dump(arguments: argparse.Namespace) -> int:
    """Print one scrape; return 1 where a fetch failed."""
    loaded = _loaded(arguments)
    _warn(loaded.warnings)
    with closing(Exporter(loaded, _opened(loaded, held_since=0.0))) as exporter:
        visits = exporter.visit()
        futures = [future for visit in visits for future in visit.futures]
        wait(futures, timeout=loaded.fetch.timeout + 1)
        registry = exporter.collect(visits, own=False)
        sys.stdout.buffer.write(generate_latest(registry))  # UTF-8, whatever the terminal speaks
        sys.stdout.flush()
        return int(any(visit.outcome(api).cause for visit in visits for api in visit.target.fetchers))


def _report(arguments: argparse.Namespace) -> None:
    with _reading(arguments) as store:
        report.write(store, arguments.month, as_csv=arguments.csv)


def _show(arguments: argparse.Namespace) -> None:
    with _reading(arguments) as store:
        upkeep.show(store)


def _copy(arguments: argparse.Namespace) -> None:
    source, target = config.ledger_at(arguments.source), config.ledger_at(arguments.target)
    if "memory:" in (source.url, target.url):
        raise ConfigError(["memory: a ledger in memory ends with its exporter; name another one"])
    with closing(_kept(source)) as read, closing(_store(target)) as written:
        upkeep.copy(read, written)


def _backup(arguments: argparse.Namespace) -> None:
    with _reading(arguments) as store:
        upkeep.backup(store, arguments.file)


def _forget(arguments: argparse.Namespace) -> None:
    ledger = _loaded(arguments, keys_needed=False).ledger
    _kept(ledger).close()  # there is one
    with closing(_store(ledger)) as store:
        upkeep.forget(store, arguments.model)


def _classify(arguments: argparse.Namespace) -> None:
    """Print how failure reasons map to classes: how often, the class, the text."""
    loaded = _loaded(arguments, keys_needed=arguments.live)
    texts = _live_reasons(loaded) if arguments.live else (line.decode(errors="replace") for line in sys.stdin.buffer)
    classifier = Classifier(loaded.failure_reasons)
    for text, count in Counter(text.rstrip("\r\n") for text in texts).most_common():
        print(count, classifier.classify(text), " ".join(text.split()), sep="\t")


def _live_reasons(loaded: Config) -> Iterator[str]:
    for workspace in loaded.workspaces:
        with closing(Client(workspace, loaded.fetch)) as client:
            for batch in client.tasks():
                if isinstance(batch, list):  # it always is, where no stretch is known from before
                    yield from (task.failed_reason or "" for task in batch if task.status == "failed")


def _simulate(arguments: argparse.Namespace) -> None:
    from creatify_exporter.simulator import serve  # noqa: PLC0415 - as above

    try:
        serve(
            arguments.listen,
            seed=arguments.seed,
            speed=arguments.speed,
            tasks=arguments.tasks,
            api_id=arguments.api_id,
            api_key=arguments.api_key,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([f"--listen {arguments.listen}: {reason}; choose another address or port"]) from None


def _loaded(arguments: argparse.Namespace, *, keys_needed: bool = True) -> Config:
    return config.load(arguments.config_file, os.environ, ledger_url=arguments.ledger_url, keys_needed=keys_needed)


def _opened(loaded: Config, *, held_since: float | None = None) -> Ledger:
    return Ledger(_store(loaded.ledger), rules(loaded), held_since=held_since)


def _reading(arguments: argparse.Namespace) -> AbstractContextManager[Store]:
    """Open the configured ledger to read it."""
    return closing(_kept(_loaded(arguments, keys_needed=False).ledger))


def _kept(ledger: config.Ledger) -> Store:
    """Open a ledger that outlives its exporter, to read it."""
    if ledger.url == "memory:":
        raise ConfigError(["ledger.url memory: a ledger in memory ends with its exporter; name another one"])
    return _store(ledger, read_only=True)


def _store(ledger: config.Ledger, *, read_only: bool = False) -> Store:
    if not ledger.conninfo:
        return SqliteStore(ledger.path, read_only=read_only)
    try:
        from creatify_exporter.ledger.postgresql import PostgresqlStore  # noqa: PLC0415 - only those who use it load it
    except ImportError:
        raise ConfigError(
            ["ledger.url: PostgreSQL needs the package psycopg; pip install 'creatify-exporter[postgresql]'"]
        ) from None
    return PostgresqlStore(ledger.conninfo, read_only=read_only)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        _log.warning("doubtful configuration", warning=warning)


def _parser() -> argparse.ArgumentParser:
    """Return the parser. Flags are named as in the Prometheus family, and stand before or behind the command."""
    # The commands have flags of their own: the defaults set below would become those of flags that are shared, and a
    # command would overwrite with them what stands before it.
    shared, serving, web = _shared_flags(), _serving_flags(), _web_flags()
    parser = argparse.ArgumentParser(
        prog="creatify-exporter",
        description="Prometheus exporter for Creatify text generation tasks. Without a command, it serves.",
        parents=[_shared_flags(), _serving_flags(), _web_flags()],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"creatify-exporter {__version__}")
    parser.set_defaults(
        run=_serve,
        config_file=None,
        ledger_url=None,
        log_level="info",
        log_format="logfmt",
        demo=False,
        listen_address=None,
        telemetry_path="/metrics",
        external_url=None,
        systemd_socket=False,
        route_prefix="",
        max_requests=0,
        disable_exporter_metrics=False,
        web_config_file=None,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        more = [serving, web] if run is _serve else [web] if run is _check else []
        added = commands.add_parser(name, help=text, description=text, parents=[shared, *more], allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    command("serve", _serve, "serve metrics (the default)")
    command("check", _check, "check the configuration; exit 1 with all that is wrong with it")
    command("dump", _dump, "print one scrape, as for the textfile collector; exit 1 when a fetch failed")
    _report_flags(command("report", _report, "print the totals of a month by day, workspace and model"))
    _ledger_actions(command("ledger", _show, "look after the ledger"), shared)
    classify = command("classify", _classify, "show to which classes failure reasons belong")
    classify.add_argument("--live", action="store_true", help="those in the list now, not those on standard input")
    _simulate_flags(command("simulate", _simulate, "serve a simulated Creatify API"))
    return parser


def _shared_flags() -> argparse.ArgumentParser:
    # Without defaults: those of a command would overwrite what stands before it.
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    flags.add_argument("--config.file", dest="config_file", metavar="FILE", type=Path, help="configuration (YAML)")
    flags.add_argument(
        "--ledger.url",
        dest="ledger_url",
        metavar="URL",
        help="where counted tasks are remembered: sqlite:///PATH, postgresql://HOST/DATABASE or memory:",
    )
    flags.add_argument("--log.level", dest="log_level", choices=_LEVELS, help="least level that is logged")
    flags.add_argument("--log.format", dest="log_format", choices=["logfmt", "json"], help="format of the log")
    return flags


def _serving_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    flags.add_argument("--demo", action="store_true", help="serve a simulated account: no key, no file")
    flags.add_argument(
        "--web.listen-address",
        dest="listen_address",
        metavar="HOST:PORT",
        action="append",
        help="address to listen on, :10081 by default; may be given more than once",
    )
    flags.add_argument(
        "--web.telemetry-path", dest="telemetry_path", metavar="PATH", type=_path, help="path of the metrics: /metrics"
    )
    flags.add_argument(
        "--web.external-url", dest="external_url", metavar="URL", type=_url, help="where Prometheus finds this exporter"
    )
    flags.add_argument(
        "--web.systemd-socket",
        dest="systemd_socket",
        action="store_true",
        help="listen on the sockets of a systemd .socket unit instead of --web.listen-address",
    )
    flags.add_argument(
        "--web.route-prefix", dest="route_prefix", metavar="PATH", type=_prefix, help="what every route begins with: /"
    )
    flags.add_argument(
        "--web.max-requests",
        dest="max_requests",
        metavar="N",
        type=_count,
        help="how many scrapes are answered at once; 0, the default, for any number",
    )
    flags.add_argument(
        "--web.disable-exporter-metrics",
        dest="disable_exporter_metrics",
        action="store_true",
        help="leave out process_* and python_info",
    )
    return flags


def _web_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    flags.add_argument(
        "--web.config.file",
        dest="web_config_file",
        metavar="FILE",
        type=_file,
        help="TLS, users and headers, in the format of the Prometheus exporter toolkit",
    )
    return flags


def _report_flags(report_parser: argparse.ArgumentParser) -> None:
    report_parser.add_argument("--month", metavar="YYYY-MM", help="the month, in UTC; this month by default")
    report_parser.add_argument("--csv", action="store_true", help="comma-separated values, without sums")


def _ledger_actions(ledger: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    actions = ledger.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text, parents=[shared], allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    action("show", _show, "print what is tracked and counted, by workspace and model")
    copy = action("copy", _copy, "copy a ledger into an empty one, such as a file into PostgreSQL")
    copy.add_argument("source", metavar="FROM", help="URL, as for --ledger.url; it is only read")
    copy.add_argument("target", metavar="TO", help="URL of an empty ledger, or of one to be made")
    backup = action("backup", _backup, "write the ledger as it is now to a file, also while it is in use")
    backup.add_argument("file", metavar="FILE", type=Path, help="a new file, which is a ledger of its own")
    forget = action("forget", _forget, "remove the counters of a model that is no longer used")
    forget.add_argument("model", metavar="MODEL", help="the model, as in the label")


def _simulate_flags(simulate: argparse.ArgumentParser) -> None:
    simulate.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, default="127.0.0.1:10082", help="address: %(default)s"
    )
    simulate.add_argument("--seed", type=int, default=1, help="the same seed makes the same account: %(default)s")
    simulate.add_argument("--speed", type=_speed, default=1.0, help="how fast its time goes: %(default)s")
    simulate.add_argument("--tasks", type=int, default=10_000, help="length of the list: %(default)s")
    simulate.add_argument("--api-id", default="demo-id", help="the id that it accepts: %(default)s")
    simulate.add_argument("--api-key", default="demo-key", help="the key that it accepts: %(default)s")


def _path(text: str) -> str:
    if not text.startswith("/") or "//" in text or set(text) & set("{}?#"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path; write it like /metrics")
    if text.rstrip("/") in ("", "/probe", "/sd") or text.startswith("/-/"):
        raise argparse.ArgumentTypeError(f"{text!r} is the path of something else; write another, like /metrics")
    return text


def _prefix(text: str) -> str:
    prefix = text.rstrip("/")
    if prefix and (not prefix.startswith("/") or "//" in prefix or set(prefix) & set("{}?#")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path; write it like /exporter")
    return prefix


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write one like 40, or 0 for no limit")
    return int(text)


def _file(text: str) -> Path | None:
    """Return no file for an empty name, which is the default of the exporter toolkit."""
    return Path(text) if text else None


def _address(text: str) -> str:
    port = re.search("^.*:([0-9]{1,5})$", text)
    if not port or not int(port[1]) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; write it like 127.0.0.1:10082")
    return text


def _speed(text: str) -> float:
    with suppress(ValueError):
        if 1 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a speed; write a number, at least 1")


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - looks at the port, which may raise
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a URL; write it like https://exporter.example:10081"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL; write it like https://exporter.example:10081")
    return text
