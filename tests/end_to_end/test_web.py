"""The web configuration file, with real connections: TLS, client certificates, users, and their rotation."""

import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import requests
import yaml

from authority import Authority, Pair
from conftest import tool
from processes import COMMAND, ExporterProcess, parsed, reset, running_exporter, running_prometheus, total, until

PASSWORD = "canary-password"  # noqa: S105  it is to be looked for in the log
KEYS = {"CREATIFY_API_ID": "an-api-id", "CREATIFY_API_KEY": "an-api-key"}


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


class Site:
    """A folder with a web configuration and the certificates that it names, and the exporter that reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "web.yml"
        self.ca, self.other = Authority(folder, "ca"), Authority(folder, "other")
        self.install(self.ca.issue("first", "DNS:localhost", "IP:127.0.0.1"))
        self.exporter: ExporterProcess

    def install(self, pair: Pair) -> None:
        shutil.copy(pair.cert, self.folder / "server.pem")
        shutil.copy(pair.key, self.folder / "server.key")

    def write(self, *, tls: dict[str, Any] | None = None, users: dict[str, str] | None = None, **http: Any) -> None:
        """Write the file; TLS is on unless it is told not to be."""
        section = {"cert_file": "server.pem", "key_file": "server.key", **(tls or {})}
        document = {"tls_server_config": section, "http_server_config": http, "basic_auth_users": users or {}}
        (self.folder / "new").write_text(yaml.safe_dump(document))
        (self.folder / "new").rename(self.path)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.address[1]}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.exporter.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return "".join(self.exporter.log)

    def get(self, path: str = "/-/healthy", word: str = "", cert: Pair | None = None) -> requests.Response:
        """Ask with a password, if any, and with a client certificate, if any."""
        auth = ("prometheus", word) if word else None
        names = (str(cert.cert), str(cert.key)) if cert else None
        return requests.get(f"{self.url}{path}", verify=str(self.ca.pem), auth=auth, cert=names, timeout=20)

    def connected(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.ca.pem)
        return context.wrap_socket(socket.create_connection(self.address, timeout=30), server_hostname="localhost")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def serving() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(site: Site, serving: ExitStack, *flags: str) -> None:
    arguments = ["--demo", "--web.listen-address", "127.0.0.1:0", "--web.config.file", str(site.path), *flags]
    site.exporter = serving.enter_context(running_exporter(*arguments))


def closed(connection: socket.socket) -> bool:
    """Whether the server ends the connection, be it with a word before."""
    connection.settimeout(10)
    with suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return True


def test_a_scrape_over_tls_with_a_password(site: Site, serving: ExitStack) -> None:
    site.write(users={"prometheus": hashed(PASSWORD)}, headers={"X-Frame-Options": "deny"})
    start(site, serving)
    answer = site.get("/metrics", word=PASSWORD)
    assert total(parsed(answer.text), "creatify_up", api="text_generator") == 1
    refused = [site.get("/metrics"), site.get("/metrics", word="wrong"), site.get("/nowhere")]
    assert [each.status_code for each in refused] == [401, 401, 401]
    assert site.get().status_code == 200
    assert {each.headers["X-Frame-Options"] for each in [answer, *refused]} == {"deny"}
    assert all(target["labels"]["__scheme__"] == "https" for target in site.get("/sd", word=PASSWORD).json())


def test_a_client_is_let_in_by_its_authority_and_its_name(site: Site, serving: ExitStack) -> None:
    site.write(
        tls={
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_ca_file": "ca.pem",
            "client_allowed_sans": ["prometheus.example"],
        }
    )
    start(site, serving)
    assert site.get(cert=site.ca.issue("good", "DNS:prometheus.example")).status_code == 200
    for wrong in (
        None,
        site.ca.issue("named-otherwise", "DNS:grafana.example"),
        site.other.issue("foreign", "DNS:prometheus.example"),
    ):
        with pytest.raises(requests.ConnectionError):
            site.get(cert=wrong)
    assert "level=error" not in site.log


def test_certificates_are_swapped_for_new_connections(site: Site, serving: ExitStack) -> None:
    site.write()
    start(site, serving)
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(site.ca.pem)
        assert session.get(f"{site.url}/-/healthy", timeout=30).ok
        with site.connected() as connection:
            before = connection.getpeercert(binary_form=True)
        site.install(site.ca.issue("second", "DNS:localhost", "IP:127.0.0.1"))

        def swapped() -> bool:
            with site.connected() as connection:
                return connection.getpeercert(binary_form=True) != before

        until(swapped)
        assert session.get(f"{site.url}/-/healthy", timeout=30).ok, "an open connection goes on"


def test_users_and_client_authentication_change_without_a_restart(site: Site, serving: ExitStack) -> None:
    site.write(users={"prometheus": hashed(PASSWORD)})
    start(site, serving)
    assert site.get("/sd", word=PASSWORD).ok
    site.write(users={"prometheus": hashed("another")})
    until(lambda: site.get("/sd", word="another").ok)
    assert site.get("/sd", word=PASSWORD).status_code == 401

    site.write(
        tls={"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem", "max_version": "TLS12"}
    )

    def is_refused() -> bool:
        with suppress(requests.ConnectionError):
            return not site.get()
        return True

    until(is_refused)
    assert site.get(cert=site.ca.issue("good")).ok


def test_a_broken_file_keeps_the_old_one_with_one_line(site: Site, serving: ExitStack) -> None:
    site.write(users={"prometheus": hashed(PASSWORD)})
    start(site, serving)
    good = site.path.read_text()
    site.path.write_text(good.replace("$2b$04$", "$2b$99$"))
    until(lambda: "web configuration not reloaded" in site.log)
    assert site.get("/sd").status_code == 401
    assert site.get("/sd", word=PASSWORD).ok
    site.path.write_text(good)
    until(lambda: "web configuration reloaded" in site.log)
    lines = [line for line in site.exporter.log if "level=error" in line]
    assert len(lines) == 1
    assert "basic_auth_users.prometheus: must have a cost" in lines[0]
    assert "$2b$" not in site.log


def test_a_reload_reads_it_and_says_what_needs_a_restart(site: Site, serving: ExitStack) -> None:
    site.write(users={"prometheus": hashed(PASSWORD)})
    start(site, serving)
    site.write()
    site.exporter.process.send_signal(signal.SIGHUP)
    until(lambda: site.get("/sd").ok)
    site.path.write_text("{}\n")
    answer = requests.post(f"{site.url}/-/reload", verify=str(site.ca.pem), timeout=30)
    assert answer.status_code == 500
    assert "tls_server_config: cannot be removed while connections are served; restart the exporter" in answer.text
    samples = parsed(site.get("/metrics").text)
    assert total(samples, "creatify_exporter_config_last_reload_successful") == 0


def test_silent_connections_keep_nobody_waiting(site: Site, serving: ExitStack) -> None:
    site.write()
    start(site, serving)
    for first in (b"", b"\x16\x03\x01"):
        for _ in range(20):
            connection = serving.enter_context(socket.create_connection(site.address))
            connection.sendall(first)
    assert site.get().ok


def test_a_stop_does_not_wait_for_clients_that_say_nothing(site: Site, serving: ExitStack) -> None:
    site.write()
    start(site, serving)
    for _ in range(3):
        serving.enter_context(socket.create_connection(site.address))
        serving.enter_context(site.connected())
    assert site.get().ok
    site.exporter.process.send_signal(signal.SIGTERM)
    assert site.exporter.process.wait(15) == 0


def test_who_speaks_another_protocol_is_closed_without_an_error_in_the_log(site: Site, serving: ExitStack) -> None:
    site.write()
    start(site, serving)
    for first in (
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 1000,
        b"\x16\x03\x01\x02\x00" + b"\0" * 512,
    ):
        with socket.create_connection(site.address) as connection:
            connection.sendall(first)
            assert closed(connection)
    for rude in (left_in_the_handshake, reset_after_it, gone_mad_after_it, sending_after_the_end):
        rude(site)
    assert site.get().ok
    assert site.exporter.terminate() == 0
    assert "level=error" not in site.log
    assert "Traceback" not in site.log


def left_in_the_handshake(site: Site) -> None:
    connection = socket.create_connection(site.address)
    connection.sendall(b"\x16")
    reset(connection)


def reset_after_it(site: Site) -> None:
    connection = site.connected()
    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    reset(connection)


def gone_mad_after_it(site: Site) -> None:
    with socket.socket(fileno=site.connected().detach()) as connection:
        connection.sendall(b"no record of TLS")
        assert closed(connection)


def sending_after_the_end(site: Site) -> None:
    with site.connected() as connection, suppress(OSError):
        connection.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"x" * 10_000)


def test_a_client_that_speaks_tls_to_a_plain_port_is_closed(site: Site, serving: ExitStack) -> None:
    site.path.write_text("{}\n")
    start(site, serving)
    with pytest.raises(ssl.SSLError):
        site.connected()
    assert site.exporter.get("/-/healthy").ok
    assert "level=error" not in site.log


def test_prometheus_scrapes_with_certificate_and_password(site: Site, serving: ExitStack) -> None:
    site.write(
        tls={"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"},
        users={"prometheus": hashed(PASSWORD)},
    )
    start(site, serving)
    pair = site.ca.issue("prometheus", "DNS:prometheus.example")
    (site.folder / "password").write_text(PASSWORD)
    job = {
        "scheme": "https",
        "tls_config": {"ca_file": str(site.ca.pem), "cert_file": str(pair.cert), "key_file": str(pair.key)},
        "basic_auth": {"username": "prometheus", "password_file": str(site.folder / "password")},
        "static_configs": [{"targets": [f"localhost:{site.address[1]}"]}],
    }
    wrong = {**job, "job_name": "wrong", "basic_auth": {"username": "prometheus", "password": "wrong"}}
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": [{**job, "job_name": "right"}, wrong]}
    binary = tool("prometheus", "prometheus")
    with running_prometheus(binary, site.folder / "prometheus", settings) as prometheus:
        until(lambda: prometheus.value('up{job="right"}') == 1)
        until(lambda: prometheus.value('up{job="wrong"}') == 0)
        until(lambda: prometheus.value('creatify_up{api="text_generator",job="right"}') == 1)
    assert PASSWORD not in site.log


def test_prometheus_3_finds_every_series_by_its_name_in_each_escaping_scheme_and_keeps_classic_buckets_if_told_to(
    tmp_path: Path, serving: ExitStack, prometheus_3: str
) -> None:
    exporter = serving.enter_context(running_exporter("--demo", "--web.listen-address", "127.0.0.1:0"))
    targets = {"static_configs": [{"targets": [exporter.url.removeprefix("http://")]}]}
    native = {"convert_classic_histograms_to_nhcb": True}
    ways: dict[str, dict[str, Any]] = {
        **{each: {"metric_name_escaping_scheme": each} for each in ("allow-utf-8", "underscores", "dots", "values")},
        "text": {"scrape_protocols": ["PrometheusText0.0.4"]},
        "native": native,
        "both": {**native, "always_scrape_classic_histograms": True},
    }
    jobs = [{"job_name": name, **way, **targets} for name, way in ways.items()]
    settings = {"global": {"scrape_interval": "5s", "scrape_timeout": "5s"}, "scrape_configs": jobs}
    with running_prometheus(prometheus_3, tmp_path / "prometheus", settings) as prometheus:
        until(lambda: prometheus.value('count(creatify_up{api="text_generator"} == 1)') == len(ways), 60)
        found = prometheus.query('group by (job, __name__) ({__name__=~".*creatify.*"})')
    names = {way: {each["metric"]["__name__"] for each in found if each["metric"]["job"] == way} for way in ways}
    native_names = names.pop("native")
    assert [way for way, these in names.items() if these != names["text"]] == []
    assert {name for name in names["text"] - native_names if not name.endswith(("_bucket", "_sum", "_count"))} == set()
    assert "creatify_task_duration_seconds_bucket" in names["text"] - native_names


def test_check_and_start_tell_every_mistake_of_both_files(site: Site) -> None:
    site.path.write_text("rate_limit: {burst: -1}\nbasic_auth_users: {alice: canary-password}\n")
    main = site.folder / "config.yml"
    main.write_text("fetch: {timeout: 0s}\n")
    for command in ([], ["check"]):
        flags: list[str | Path] = [*command, "--config.file", main, "--web.config.file", site.path]
        done = subprocess.run([COMMAND, *flags], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 1
        assert [
            word for word in ("workspaces", "fetch.timeout", "rate_limit", "alice") if word not in done.stderr
        ] == []
        assert len(done.stderr.splitlines()) == 4
        assert "canary" not in done.stderr


def test_check_says_what_holds(site: Site) -> None:
    site.write(users={"prometheus": hashed(PASSWORD)})
    done = subprocess.run(
        [COMMAND, "check", "--web.config.file", site.path],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(site.folder), **KEYS},
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in done.stdout.splitlines() if not line.startswith("ledger: ")]
    assert said == [
        "the configuration is valid: default",
        "warning: basic_auth_users.prometheus: a cost of 4 makes the password quick to guess; 10 is usual",
        "the web configuration is valid: TLS on, users: 1",
    ]


def test_it_listens_on_the_socket_of_systemd() -> None:
    """As systemd starts it: the socket is file descriptor 3, its own process is named."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        script = f'exec 3<&{listening.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        command = ["bash", "-c", script, "bash", COMMAND, "--demo", "--web.systemd-socket"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=[listening.fileno()]) as process:
            listening.close()
            # Connections wait in the queue until it is ready.
            assert requests.get(f"http://127.0.0.1:{port}/-/ready", timeout=30).ok
            process.terminate()
            assert process.wait(30) == 0
    done = subprocess.run(
        [COMMAND, "--demo", "--web.systemd-socket"], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert done.stderr == (
        "creatify-exporter: --web.systemd-socket: systemd passed no sockets; start the exporter from a .socket unit\n"
    )
