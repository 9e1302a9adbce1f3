"""The command line: its flags and error messages. Imports only modules that load quickly."""

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

# 128 + SIGINT, as in shells.
_INTERRUPTED: Final = 130

_LEVELS: Final = ("debug", "info", "warning", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Each user error is a line on standard error, with exit code 1."""
    arguments = _parser().parse_args(argv)
    signals.release(serving=arguments.command == "serve")
    try:
        return _run(arguments)
    except ConfigError as error:
        return _print_problems(error.problems)
    except ExporterError as error:
        return _print_problems([str(error)])
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has closed the pipe.
        _discard_output()
        return 0
    except OSError as error:
        # For example, no space left on the device.
        _discard_output()
        return _print_problems([str(error)])


def _run(arguments: argparse.Namespace) -> int:
    from creatify_exporter import commands  # noqa: PLC0415  takes a second; a wrong flag fails before that

    if isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):
            # Under PYTHONUNBUFFERED, a full disk may cause a partial write without an error.
            sys.stdout = os.fdopen(sys.stdout.fileno(), "w", encoding=sys.stdout.encoding, closefd=False)
        # Names and reasons may contain characters that cannot be encoded.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = commands.run(arguments)
    # Here, so that a failure can still be reported.
    sys.stdout.flush()
    return code


def _discard_output() -> None:
    """Keep Python from failing again when it flushes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_problems(problems: Iterable[str]) -> int:
    for problem in problems:
        print(f"creatify-exporter: {problem}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """Reports unknown flags and commands by name, with a suggestion.

    argparse would complain about the word after the flag ("invalid choice: '40'"), below many lines of usage.
    """

    # By name; empty if there are none.
    commands: Mapping[str, argparse.ArgumentParser] = {}

    def parse_known_args(  # type: ignore[override]  # of the overloads, this is the one that argparse calls
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as inherited, after checking the name of the command and all flags before it."""
        words = list(sys.argv[1:] if args is None else args)
        problem = self._find_problem(words)
        if problem:
            self.error(problem)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to get help, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\nTry '{self.prog} --help'.\n")

    def _find_problem(self, words: Sequence[str]) -> str | None:
        """Return an error for the first unknown flag or command."""
        flags, remaining = _flags(self), iter(words)
        for word in remaining:
            name, has_value, _ = word.partition("=")
            if name in ("-h", "--help", "--version", "--"):
                return None
            if not name.startswith("-"):
                # The parser of the command checks the words after its name.
                if self.commands:
                    return None if word in self.commands else self._unknown_command(word)
            elif name not in flags:
                return self._unknown_flag(name)
            elif flags[name].nargs != 0 and not has_value:
                next(remaining, None)
        return None

    def _unknown_command(self, word: str) -> str:
        hint = _suggestion(word, self.commands) or f"; known commands: {', '.join(self.commands)}"
        return f"unknown command {word!r}{hint}"

    def _unknown_flag(self, flag: str) -> str:
        for name, command in self.commands.items():
            if flag in _flags(command):
                return f"unknown flag {flag}; put it after the command {name}"
        return f"unknown flag {flag}{_suggestion(flag, _flags(self))}"


def _suggestion(word: str, known: Iterable[str]) -> str:
    """Return a suggestion, empty if no known word is similar."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return parser._option_string_actions  # noqa: SLF001  argparse has no public list of them


def _parser() -> _Parser:
    """Return the parser. Flags are named as in Prometheus, and are accepted before or after the command."""
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
        parser.set_defaults(**group.defaults)
    _add_commands(parser)
    return parser


def _add_commands(parser: _Parser) -> None:
    # Separate flags, because `set_defaults` changes those of the program.
    shared, web = _shared_flags(), _web_flags()
    command = _command_adder(parser, parser.add_subparsers(title="commands", metavar="COMMAND"), shared)
    command("serve", "serve metrics (the default)", _serving_flags(), web)
    _init_flags(command("init", "write a first configuration to --config.file (or creatify-exporter.yml)"))
    check = command("check", "check the configuration; print every error and exit 1 if there is one", web)
    check.add_argument(
        "--live", action="store_true", help="fetch each list once too, and print the results; exit 1 if a fetch failed"
    )
    command("dump", "print one scrape, for the textfile collector; exit 1 if a fetch failed")
    _report_flags(command("report", "print the totals of a month by day, workspace, list and model"))
    _ledger_actions(command("ledger", "inspect and maintain the ledger"), shared)
    classify = command("classify", "show the class of each failure reason")
    classify.add_argument(
        "--live", action="store_true", help="classify the reasons in the current lists, not those on standard input"
    )
    _simulate_flags(command("simulate", "serve a simulated Creatify API"))


def _command_adder(
    parser: _Parser, commands: "argparse._SubParsersAction[_Parser]", shared: _Parser, prefix: str = ""
) -> Callable[..., _Parser]:
    """Return a function that adds a command, given its name, its help, and parsers whose flags it shares."""
    parser.commands = commands.choices

    def add(name: str, text: str, *more: _Parser) -> _Parser:
        added = commands.add_parser(name, help=text, description=text, parents=[shared, *more], allow_abbrev=False)
        added.set_defaults(command=f"{prefix}{name}")
        return added

    return add


class _Flags(_Parser):
    """Flags of several commands. Only the program sets defaults: those of a command would overwrite flags before it."""

    def __init__(self) -> None:
        super().__init__(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
        self.defaults: dict[str, object] = {}

    def add(self, flag: str, *, default: object = None, **settings: Any) -> None:  # noqa: ANN401  as in argparse
        """Add a flag; the value of --web.listen-address is the attribute `web_listen_address`."""
        name = re.sub("[.-]", "_", flag.removeprefix("--"))
        self.defaults[name] = default
        if isinstance(default, str) and default:
            settings["help"] += f" (default: {default})"
        self.add_argument(flag, dest=name, **settings)


def _shared_flags() -> _Flags:
    flags = _Flags()
    flags.add("--config.file", metavar="FILE", type=_file, help="configuration file (YAML)")
    flags.add(
        "--ledger.url",
        metavar="URL",
        help="where counted tasks are stored: sqlite:///PATH, postgresql://HOST/DATABASE or memory:",
    )
    flags.add("--log.level", default="info", choices=_LEVELS, type=_level, help="minimum level to log")
    flags.add("--log.format", default="logfmt", choices=["logfmt", "json"], help="format of the log")
    return flags


def _serving_flags() -> _Flags:
    flags = _Flags()
    flags.add("--demo", action="store_true", help="serve a simulated account, which needs no keys and no file")
    flags.add(
        "--config.auto-reload-interval",
        default=0.0,
        metavar="DURATION",
        type=_duration,
        help="how often to check whether the configuration has changed, such as 30s; 0s for never (default: 0s)",
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
    flags.add("--web.external-url", metavar="URL", type=_url, help="URL at which Prometheus reaches this exporter")
    flags.add(
        "--web.systemd-socket",
        action="store_true",
        help="listen on the sockets of a systemd .socket unit instead of --web.listen-address",
    )
    flags.add("--web.route-prefix", default="", metavar="PATH", type=_PREFIX, help="prefix of every route (default: /)")
    flags.add(
        "--web.max-requests",
        default=0,
        metavar="N",
        type=_COUNT,
        help="maximum number of concurrent scrapes; 0 for no limit (default: 0)",
    )
    flags.add("--web.disable-exporter-metrics", action="store_true", help="omit process_* and python_info")
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
    action = _command_adder(ledger, actions, shared, "ledger ")
    action("show", "print what is tracked and counted, by workspace and model")
    copy = action("copy", "copy a ledger into an empty one, such as a file into PostgreSQL")
    copy.add_argument("source", metavar="FROM", help="URL, as for --ledger.url; it is only read")
    copy.add_argument("target", metavar="TO", help="URL of an empty ledger, or of a new one")
    backup = action("backup", "write the current ledger to a file, even while it is in use")
    backup.add_argument("file", metavar="FILE", type=_FILE_NAME, help="a new file, itself a complete ledger")
    forget = action("forget", "remove the counters of a model, or all data of a workspace, that is no longer used")
    forget.add_argument(
        "model", metavar="MODEL", type=_NAME, nargs="?", help="the model, as in the label; its daily totals are kept"
    )
    forget.add_argument(
        "--workspace", metavar="NAME", type=_NAME, help="only in this workspace; without MODEL, all data of it"
    )
    forget.add_argument("--api", metavar="LIST", type=_NAME, help="only in this list, as in the label api")


def _simulate_flags(simulate: _Parser) -> None:
    simulate.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, default="127.0.0.1:10082", help="address (default: %(default)s)"
    )
    simulate.add_argument(
        "--seed", type=int, default=1, help="the same seed makes the same account (default: %(default)s)"
    )
    simulate.add_argument("--speed", type=_SPEED, default=1.0, help="how fast its clock runs (default: %(default)s)")
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
        help="ratio of a model's new tasks that fail, such as flux-2=0.5; may be given more than once",
    )
    simulate.add_argument("--api-id", default="demo-id", help="the id that it accepts (default: %(default)s)")
    simulate.add_argument("--api-key", default="demo-key", help="the key that it accepts (default: %(default)s)")


def _file(text: str) -> Path | None:
    """Return the file; an empty name, the default in Prometheus, means no file."""
    try:
        return file.expanded(text) if text else None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _level(text: str) -> str:
    """Return the name of a level; Prometheus calls it warn, in upper or lower case."""
    level = text.lower()
    return "warning" if level == "warn" else level


def _matching(pattern: str, words: str, make: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Return a parser for texts that match; `words` say what is wrong with others and how to fix it."""

    def read(text: str) -> Any:  # noqa: ANN401  returned by `make`
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} {words}")
        return make(text)

    return read


# An empty name, as from an unset variable, must mean neither "all" nor "no file".
_NAME: Final = _matching("(?s).+", "is empty; write a name that `creatify-exporter ledger show` prints")
_FILE_NAME: Final = _matching("(?s).+", "is empty; specify a file", _file)
_TELEMETRY_PATH: Final = _matching(
    r"(?!/(probe|sd)/?$|/-/)(/[^/{}?#%]+)+/?", "is not a path, or belongs to another route; write one like /metrics"
)
_PREFIX: Final = _matching(r"(/[^/{}?#%]+)*/?", "is not a path; write it like /exporter", lambda text: text.rstrip("/"))
_COUNT: Final = _matching("[0-9]{1,9}", "is not a number; write one like 40, or 0 for no limit", int)
_TASKS: Final = _matching("[0-9]{1,9}", "is not a number; write how many tasks to list, such as 40", int)
_SPEED: Final = _matching(r"[1-9][0-9]{0,8}(\.[0-9]+)?", "is not a speed; write a number, at least 1", float)


def _duration(text: str) -> float:
    from creatify_exporter.config.values import parse_duration  # noqa: PLC0415  slow to load, and rarely needed

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
        # Reading `port` may raise.
        if parts.scheme in ("http", "https") and parts.hostname and is_plain and parts.port != 0:
            return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a URL; write it like https://exporter.example:10081")
