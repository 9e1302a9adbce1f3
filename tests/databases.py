"""A real PostgreSQL server."""

import os
import pwd
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from processes import free_port, until

PASSWORD = "p@ss/w:rd"  # noqa: S105 - of a server that lives for one test run


class Postgres:
    """A server on a free port of the loopback interface, its files in `folder`. `start` and `stop` may be repeated.

    It need not write its files safely, since no machine fails while tests run.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._programs = programs
        self._server: subprocess.Popen[bytes] | None = None
        # As root it refuses to run.
        self._owner: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._owner = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        password = folder / "password"
        password.write_text("postgres\n")
        password.chmod(0o644)
        how = ["-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C", "-N"]
        make: list[str | Path] = [programs / "initdb", "-D", folder / "data", *how]
        subprocess.run(make, check=True, capture_output=True, cwd="/", **self._owner)

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off",
            "max_connections": 60, "shared_buffers": "32MB",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "data", *options],
                stdout=log, stderr=log, cwd="/", **self._owner,
            )  # fmt: skip
        until(self._answers)

    def stop(self, signum: signal.Signals = signal.SIGINT) -> None:
        """End it; SIGINT is its fast shutdown, SIGQUIT what a crash is."""
        if self._server:
            self._server.send_signal(signum)
            self._server.wait(30)
            self._server = None

    @contextmanager
    def admin(self, database: str = "postgres") -> Iterator["psycopg.Connection[Any]"]:
        with psycopg.connect(
            f"postgresql://postgres:postgres@127.0.0.1:{self.port}/{database}", autocommit=True
        ) as connection:
            yield connection

    def database(self, encoding: str = "UTF8") -> str:
        """Make a database with an owner of its own; return its URL."""
        name = f"ledger_{secrets.token_hex(6)}"
        with self.admin() as connection:
            role = sql.Identifier(name)
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(PASSWORD)))
            make = "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {}"
            connection.execute(sql.SQL(make).format(role, role, sql.Literal(encoding)))
        return f"postgresql://{name}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{name}"

    def copy(self, url: str) -> str:
        """Make a copy of a database, which ends the connections to it; return the copy's name."""
        name = url.rsplit("/", 1)[1]
        copy = f"{name}_{secrets.token_hex(6)}"
        self.disconnect(url)
        with self.admin() as connection:
            make = "CREATE DATABASE {} TEMPLATE {} OWNER {}"
            connection.execute(sql.SQL(make).format(*map(sql.Identifier, (copy, name, name))))
        return copy

    def replace(self, url: str, by: str | None = None) -> None:
        """Let another database have the name of this one: one that is given by its name, or a new one."""
        name = sql.Identifier(url.rsplit("/", 1)[1])
        with self.admin() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            if by:
                connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(by), name))
            else:
                make = "CREATE DATABASE {} OWNER {} TEMPLATE template0"
                connection.execute(sql.SQL(make).format(name, name))

    def disconnect(self, url: str) -> None:
        """End all connections to a database."""
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        with self.admin() as connection:
            connection.execute(end, (url.rsplit("/", 1)[1],))

    def _answers(self) -> bool:
        try:
            with self.admin():
                return True
        except psycopg.OperationalError:
            return False


def programs() -> Path | None:
    """Return the folder of the server's programs; Debian keeps it out of the path, one for each version."""
    if found := which("initdb"):
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return installed[-1].parent if installed else None
