"""The command line: its flags, and how a command's mistakes are told. It imports nothing that takes long to load."""

import argparse
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from creatify_exporter import __version__, signals
from creatify_exporter.config import file
from creatify_exporter.errors import ConfigError, ExporterError

# 128 and the number of SIGINT, as shells have it.
_INTERRUPTED: Final = 130

_LEVELS: Final = ("debug", "info", "warning", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. A user's mistake gets one line on standard error, and 1."""
    arguments = _parser().parse_args(argv)
    signals.release(serving=arguments.command == "serve")
    try:
        return _run(arguments)
    except ConfigError as error:
        return _refused(error.problems)
    except ExporterError as error:
        return _refused([str(error)])
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has seen enough.
        _abandon_output()
        return 0
    except OSError as error:
        # No space left, for example.
        _abandon_output()
        return _refused([str(error)])


def _run(arguments: argparse.Namespace) -> int:
    from creatify_exporter import commands  # noqa: PLC0415  takes a second, in which a wrong flag is told already

    if isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):
            # Under PYTHONUNBUFFERED a full disk may take the half of what is written without an error.
            sys.stdout = os.fdopen(sys.stdout.fileno(), "w", encoding=sys.stdout.encoding, closefd=False)
        # Names and reasons may hold what cannot be encoded.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = commands.run(arguments)
    # Here, where a failure can still be told.
    sys.stdout.flush()
    return code


def _abandon_output() -> None:
    """Keep Python from failing again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(problems: Iterable[str]) -> int:
    for problem in problems:
        print(f"creatify-exporter: {problem}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """Names a flag or command that it does not know, and the one that was meant.

    argparse alone complains of the word behind the flag ("invalid choice: '40'"), below a usage of many lines.
    """

    # By name, if there are any.
    commands: Mapping[str, argparse.ArgumentParser] = {}

    def parse_known_args(  # type: ignore[override]  # of the overloads, this is the one that argparse calls
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as inherited, once a command's name and all flags in front of it are known."""
        words = list(sys.argv[1:] if args is None else args)
        mistake = self._mistake(words)
        if mistake:
            self.error(mistake)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where help is."""
        self.exit(2, f"{self.prog}: error: {message}\nTry '{self.prog} --help'.\n")

    def _mistake(self, words: Sequence[str]) -> str | None:
        """Return what to say of the first flag or command that is unknown."""
        flags, remaining = _flags(self), iter(words)
        for word in remaining:
            name, has_value, _ = word.partition("=")
            if name in ("-h", "--help", "--version", "--"):
                return None
            if not name.startswith("-"):
                # The parser of a command looks at what stands behind its name.
                if self.commands:
                    return None if word in self.commands else self._unknown_command(word)
            elif name not in flags:
                return self._unknown_flag(name)
            elif flags[name].nargs != 0 and not has_value:
                next(remaining, None)
        return None

    def _unknown_command(self, word: str) -> str:
        hint = _guess(word, self.commands) or f"; there are {', '.join(self.commands)}"
        return f"unknown command {word!r}{hint}"

    def _unknown_flag(self, flag: str) -> str:
        for name, command in self.commands.items():
            if flag in _flags(command):
                return f"unknown flag {flag}; it belongs behind the command {name}"
        return f"unknown flag {flag}{_guess(flag, _flags(self))}"


def _guess(word: str, known: Iterable[str]) -> str:
    """Ask for what was probably meant; the empty text if nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return parser._option_string_actions  # noqa: SLF001  argparse has no public way to list them


def _parser() -> _Parser:
    """Return the parser. Flags are named as in the Prometheus family, and stand before or behind the command."""
    groups = [_shared_flags(), _serving_flags(), _web_flags()]
    parser = _Parser(
        prog="creatify-exporter",
        description="Prometheus exporter for Creatify tasks. Without a command, it serves.",
        parents=groups,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"creatify-exporter {__version__}")
    parser.set_defaults(command="serve")
    for group in groups:
        parser.set_defaults(**group.usual)
    _add_commands(parser)
    return parser


def _add_commands(parser: _Parser) -> None:
    # With flags of their own, since `set_defaults` changes those of the program.
    shared, web = _shared_flags(), _web_flags()
    command = _adder(parser, parser.add_subparsers(title="commands", metavar="COMMAND"), shared)
    command("serve", "serve metrics (the default)", _serving_flags(), web)
    _init_flags(command("init", "write a first configuration, with comments, to --config.file (creatify-exporter.yml)"))
    check = command("check", "check the configuration; exit 1 with all that is wrong with it", web)
    check.add_argument(
        "--live", action="store_true", help="fetch each list once too, and tell what comes; exit 1 if one does not come"
    )
    command("dump", "print one scrape, as for the textfile collector; exit 1 if a fetch failed")
    _report_flags(command("report", "print the totals of a month by day, workspace, list and model"))
    _ledger_actions(command("ledger", "look after the ledger"), shared)
    classify = command("classify", "show to which classes failure reasons belong")
    classify.add_argument(
        "--live", action="store_true", help="classify the reasons in the lists now, not those on standard input"
    )
    _simulate_flags(command("simulate", "serve a simulated Creatify API"))


def _adder(
    parser: _Parser, commands: "argparse._SubParsersAction[_Parser]", shared: _Parser, prefix: str = ""
) -> Callable[..., _Parser]:
    """Return what adds a command to a parser, by its name, its help and parsers whose flags it has too."""
    parser.commands = commands.choices

    def add(name: str, text: str, *more: _Parser) -> _Parser:
        added = commands.add_parser(name, help=text, description=text, parents=[shared, *more], allow_abbrev=False)
        added.set_defaults(command=f"{prefix}{name}")
        return added

    return add


class _Flags(_Parser):
    """Flags of several commands. Only the program has their defaults: a command's overwrite what stands before it."""

    def __init__(self) -> None:
        super().__init__(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
        self.usual: dict[str, object] = {}

    def add(self, flag: str, *, default: object = None, **settings: Any) -> None:  # noqa: ANN401  argparse's
        """Add a flag; the value of --web.listen-address is the attribute `web_listen_address`."""
        name = re.sub("[.-]", "_", flag.removeprefix("--"))
        self.usual[name] = default
        if isinstance(default, str) and default:
            settings["help"] += f" (default: {default})"
        self.add_argument(flag, dest=name, **settings)


def _shared_flags() -> _Flags:
    flags = _Flags()
    flags.add("--config.file", metavar="FILE", type=_file, help="configuration (YAML)")
    flags.add(
        "--ledger.url",
        metavar="URL",
        help="where counted tasks are remembered: sqlite:///PATH, postgresql://HOST/DATABASE or memory:",
    )
    flags.add("--log.level", default="info", choices=_LEVELS, type=_level, help="minimum level to log")
    flags.add("--log.format", default="logfmt", choices=["logfmt", "json"], help="format of the log")
    return flags


def _serving_flags() -> _Flags:
    flags = _Flags()
    flags.add("--demo", action="store_true", help="serve a simulated account: no key, no file")
    flags.add(
        "--config.auto-reload-interval",
        default=0.0,
        metavar="DURATION",
        type=_duration,
        help="how often to look whether the configuration has changed, like 30s; 0s for never (default: 0s)",
    )
    flags.add(
        "--web.listen-address",
        metavar="HOST:PORT",
        action="append",
        help="address to listen on; may be given more than once (default: :10081)",
    )
    flags.add(
        "--web.telemetry-path", default="/metrics", metavar="PATH", type=_TELEMETRY_PATH, help="path of the metrics"
    )
    flags.add("--web.external-url", metavar="URL", type=_url, help="where Prometheus finds this exporter")
    flags.add(
        "--web.systemd-socket",
        action="store_true",
        help="listen on the sockets of a systemd .socket unit instead of --web.listen-address",
    )
    flags.add(
        "--web.route-prefix", default="", metavar="PATH", type=_PREFIX, help="what every route begins with (default: /)"
    )
    flags.add(
        "--web.max-requests",
        default=0,
        metavar="N",
        type=_COUNT,
        help="how many scrapes are answered at once; 0 for any number (default: 0)",
    )
    flags.add("--web.disable-exporter-metrics", action="store_true", help="leave out process_* and python_info")
    return flags


def _web_flags() -> _Flags:
    flags = _Flags()
    flags.add(
        "--web.config.file",
        metavar="FILE",
        type=_file,
        help="TLS, users and headers, in the format of the Prometheus exporter toolkit",
    )
    return flags


def _init_flags(init: argparse.ArgumentParser) -> None:
    init.add_argument(
        "--workspace", metavar="NAME", default="default", help="name of the workspace (default: %(default)s)"
    )
    init.add_argument("--api-id-file", metavar="FILE", type=_file, help="file with the API id")
    init.add_argument("--api-key-file", metavar="FILE", type=_file, help="file with the API key")
    init.add_argument("--credits", metavar="N", type=_amount, help="credits of the plan in each period")
    init.add_argument("--renews-on-day", metavar="DAY", type=int, help="day of the month on which the plan renews")
    init.add_argument("--price-per-credit", metavar="PRICE", type=_amount, help="price of one credit; needs --currency")
    init.add_argument("--currency", metavar="CODE", help="three capital letters, such as USD")


def _report_flags(report_parser: _Parser) -> None:
    report_parser.add_argument("--month", metavar="YYYY-MM", help="the month, in UTC (default: this month)")
    report_parser.add_argument("--csv", action="store_true", help="comma-separated values, without sums")


def _ledger_actions(ledger: _Parser, shared: _Parser) -> None:
    actions = ledger.add_subparsers(title="actions", metavar="ACTION", required=True)
    action = _adder(ledger, actions, shared, "ledger ")
    action("show", "print what is tracked and counted, by workspace and model")
    copy = action("copy", "copy a ledger into an empty one, such as a file into PostgreSQL")
    copy.add_argument("source", metavar="FROM", help="URL, as for --ledger.url; it is only read")
    copy.add_argument("target", metavar="TO", help="URL of an empty ledger, or of one to be made")
    backup = action("backup", "write the ledger as it is now to a file, also while it is in use")
    backup.add_argument("file", metavar="FILE", type=_FILE_NAME, help="a new file, which is a ledger of its own")
    forget = action("forget", "remove the counters of a model, or all of a workspace, that is no longer used")
    forget.add_argument(
        "model", metavar="MODEL", type=_NAME, nargs="?", help="the model, as in the label; its daily totals stay"
    )
    forget.add_argument(
        "--workspace", metavar="NAME", type=_NAME, help="in this workspace only; without MODEL all that is known of it"
    )
    forget.add_argument("--api", metavar="LIST", type=_NAME, help="in this list only, as in the label api")


def _simulate_flags(simulate: _Parser) -> None:
    simulate.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, default="127.0.0.1:10082", help="address (default: %(default)s)"
    )
    simulate.add_argument(
        "--seed", type=int, default=1, help="the same seed makes the same account (default: %(default)s)"
    )
    simulate.add_argument("--speed", type=_SPEED, default=1.0, help="how fast its time goes (default: %(default)s)")
    simulate.add_argument(
        "--tasks",
        type=_TASKS,
        default=10_000,
        help="length of the list (default: %(default)s)",
    )
    simulate.add_argument(
        "--fail",
        metavar="MODEL=RATIO",
        type=_failure,
        action="append",
        help="let a model fail from now on, such as flux-2=0.5; may be given more than once",
    )
    simulate.add_argument("--api-id", default="demo-id", help="the id that it accepts (default: %(default)s)")
    simulate.add_argument("--api-key", default="demo-key", help="the key that it accepts (default: %(default)s)")


def _file(text: str) -> Path | None:
    """Return the file; the empty name, which is the family's default, is that of none."""
    try:
        return file.expanded(text) if text else None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _level(text: str) -> str:
    """Return the name of a level; the family writes warn, in letters of any case."""
    level = text.lower()
    return "warning" if level == "warn" else level


def _text(pattern: str, words: str, make: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Return what makes a value of the texts that match; `words` say what another is not, and how to mend it."""

    def read(text: str) -> Any:  # noqa: ANN401  what `make` returns
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} {words}")
        return make(text)

    return read


# An empty name, as of a variable that is not set, must mean neither everything nor no file.
_NAME: Final = _text("(?s).+", "is empty; write a name that `creatify-exporter ledger show` prints")
_FILE_NAME: Final = _text("(?s).+", "is empty; name a file", _file)
_TELEMETRY_PATH: Final = _text(
    r"(?!/(probe|sd)/?$|/-/)(/[^/{}?#%]+)+/?", "is no path, or that of something else; write one like /metrics"
)
_PREFIX: Final = _text(r"(/[^/{}?#%]+)*/?", "is not a path; write it like /exporter", lambda text: text.rstrip("/"))
_COUNT: Final = _text("[0-9]{1,9}", "is not a number; write one like 40, or 0 for no limit", int)
_TASKS: Final = _text("[0-9]{1,9}", "is not a number; write how many tasks to list, such as 40", int)
_SPEED: Final = _text(r"[1-9][0-9]{0,8}(\.[0-9]+)?", "is not a speed; write a number, at least 1", float)


def _duration(text: str) -> float:
    from creatify_exporter.config.values import parse_duration  # noqa: PLC0415  takes long, and is hardly ever needed

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _amount(text: str) -> float:
    from creatify_exporter.config.reader import NO_COMMAS  # noqa: PLC0415  as above

    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; {NO_COMMAS}") from None


def _address(text: str) -> str:
    port = re.search("^.*:([0-9]{1,5})$", text)
    if not port or not int(port[1]) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; write it like 127.0.0.1:10082")
    return text


def _failure(text: str) -> tuple[str, float]:
    model, _, ratio = text.rpartition("=")
    with suppress(ValueError):
        if model and 0 <= float(ratio) <= 1:
            return model, float(ratio)
    raise argparse.ArgumentTypeError(f"{text!r} is not a model and a ratio; write it like flux-2=0.5")


def _url(text: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(text)
        is_plain = not (parts.query or parts.fragment or parts.username)
        # Looking at the port may raise.
        if parts.scheme in ("http", "https") and parts.hostname and is_plain and parts.port != 0:
            return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a URL; write it like https://exporter.example:10081")
