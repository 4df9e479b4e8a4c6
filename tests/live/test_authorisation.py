"""Who may ask the exporter: real clients with tokens and passwords, and others who guess."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import bcrypt
import pytest
import trustme

from tests.live.test_fleet import APP as FLEET_APP
from tests.support import stores
from tests.support.browser import Browser
from tests.support.client import Repeating
from tests.support.databases import Database
from tests.support.exporters import server, wait_until_scraped
from tests.support.forks import NOBODY
from tests.support.missing import find_program
from tests.support.process import (
    HOST,
    can_run,
    get,
    interpreters,
    parse_metrics,
    wait_until,
)
from tests.support.serving import ServeProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.live

NEW = interpreters()[-1]
TOKEN = "t0ken-that-nobody-guesses"
USER, PASSWORD = "prometheus", "öpen sesame"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def hashed(password: str, cost: int = 6) -> str:
    """Return a line of an htpasswd file."""
    return f"{USER}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()}\n"


def basic(password: str | bytes = PASSWORD) -> dict[str, str]:
    """Return the header of a user with a password."""
    data = password if isinstance(password, bytes) else password.encode()
    packed = base64.b64encode(USER.encode() + b":" + data).decode()
    return {"Authorization": f"Basic {packed}"}


def bearer(token: str = TOKEN) -> dict[str, str]:
    """Return the header with a token."""
    return {"Authorization": f"Bearer {token}"}


class Files:
    """A token and users in files.

    Attributes:
        token: The file of the token.
        users: The file of the users.
    """

    def __init__(self, directory: Path) -> None:
        """Write them."""
        self.token, self.users = directory / "token", directory / "users"
        self.write(self.token, f"{TOKEN}\n")
        self.write(self.users, hashed(PASSWORD))

    def write(self, path: Path, text: str) -> None:
        """Put another file in the place of one, readable for its owner alone."""
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        new.replace(path)

    def settings(self) -> str:
        """Return statements of a configuration class."""
        return (
            f"metrics_bearer_token_file = {str(self.token)!r}\n"
            f"metrics_auth_file = {str(self.users)!r}"
        )

    def flags(self) -> list[str]:
        """Return the command's flags."""
        return ["--bearer-token-file", str(self.token), "--auth-file", str(self.users)]


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(name="directory")
def _directory(tmp_path: Path) -> Path:
    path = tmp_path / "metrics"
    path.mkdir()
    return path


@pytest.fixture(name="served")
def _served(directory: Path, files: Files) -> Iterator[ServeProcess]:
    with ServeProcess(directory, *files.flags()) as served:
        yield served


def status_of(port: int, headers: Mapping[str, str] | None = None, path: str = "/metrics") -> int:
    """Ask with headers; return the status."""
    return get(port, path, headers=headers).status


def curl(*arguments: str) -> str:
    """Return the status that curl gets."""
    program = find_program("curl", "curl")
    command = [program, "--silent", "--output", os.devnull, "--write-out", "%{http_code}"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


# ------------------------------------------------------------------------------------------------
# Clients


def test_curl(files: Files) -> None:
    """A server's exporter answers curl with the token or the password; nothing of them is logged.

    Its log is as talkative as it can be.
    """
    with server(NEW, f'{files.settings()}\nloglevel = "debug"') as running:
        wait_until_scraped(running)
        page = f"http://{HOST}:{running.metrics_port}"
        for path in ("/metrics", "/", "/-/status", "/-/page.js", "/nothing"):
            assert curl(page + path) == "401"
        for path in ("/-/healthy", "/-/ready"):
            assert curl(page + path) == "200"
        assert curl("--header", f"Authorization: Bearer {TOKEN}", f"{page}/metrics") == "200"
        assert curl("--oauth2-bearer", TOKEN, f"{page}/nothing") == "404"
        assert curl("--user", f"{USER}:{PASSWORD}", f"{page}/-/status") == "200"
        assert curl("--user", f"{USER}:wr0ng", f"{page}/metrics") == "401"
        assert curl("--user", f"{USER}:{'wr0ng' * 20}", f"{page}/metrics") == "401"
        assert curl("--head", "--oauth2-bearer", "wr0ng", f"{page}/metrics") == "401"
        running.get("/")
        scraped = parse_metrics(get(running.metrics_port, "/metrics", headers=bearer()).body)
        assert scraped["app_requests_total", frozenset()] >= 1
        log = running.log()
    assert '"GET /metrics HTTP/1.1" 401' in log  # each request is in it
    secrets = [TOKEN, PASSWORD, "wr0ng", hashed(PASSWORD)[len(USER) + 1 :].strip()]
    secrets += [each["Authorization"].partition(" ")[2] for each in (basic(), basic("wr0ng"))]
    for secret in secrets:
        assert secret not in log


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([f"Authorization: Bearer {TOKEN}"], "200"),
        ([f"aUTHORIZATION:bearer {TOKEN}"], "200"),
        ([f"Authorization: Bearer {TOKEN}"] * 2, "401"),
        ([f"Authorization: Bearer {TOKEN}", "Authorization: Basic x"], "401"),
        ([f"Authorization: Bearer {TOKEN[:5]}", f" {TOKEN[5:]}"], "401"),
        ([f"Authorization : Bearer {TOKEN}"], "401"),
        ([f"Authorization_: Bearer {TOKEN}"], "401"),
        (["Authorization: Bearer \xff\xfe\x80"], "401"),
        (["Authorization: Basic \0"], "401"),
        (["Authorization:"], "401"),
        (["Authorization: Basic " + "A" * 60_000], "401"),
        (["Authorization: Basic " + "A" * 70_000], "4.."),
        (["Authorization: Basic " + "A" * 60_000] * 3, "4.."),
        ([f"X-{number}: x" for number in range(200)], "4.."),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, list) else "",
)
def test_strange_requests(served: ServeProcess, lines: list[str], status: str) -> None:
    """What is no header of one right credential is refused, whatever it is, and nothing fails."""
    text = "\r\n".join(["GET /metrics HTTP/1.1", "Host: x", *lines, "", ""])
    answer = served.exchange(text.encode("latin-1"))
    assert re.match(f"HTTP/1.[01] {status} ", answer.decode("latin-1")), answer[:200]
    assert served.log().count("\n") == 1


def test_prometheus(files: Files, tmp_path: Path) -> None:
    """A Prometheus scrapes with a token and with a password, and goes on when both are renewed."""
    with server(NEW, files.settings()) as running:
        wait_until_scraped(running)
        theirs = Files(tmp_path_in(tmp_path, "theirs"))
        theirs.write(theirs.users, PASSWORD)
        jobs = {
            "token": {"authorization": {"credentials_file": str(theirs.token)}},
            "password": {
                "basic_auth": {"username": USER, "password_file": str(theirs.users)},
            },
            "wrong": {"authorization": {"credentials": "wr0ng"}},
            "nobody": {},
        }
        targets = [{"targets": [f"{HOST}:{running.metrics_port}"]}]
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": name, "static_configs": targets, **job} for name, job in jobs.items()
            ],
        }
        database = Database("prometheus", tmp_path, scrapes=json.dumps(configuration))
        with database.running():

            def up() -> dict[str, str]:
                return {
                    each["metric"]["job"]: each["value"][1]
                    for each in database.ask("last_over_time(up[4s])")
                }

            expected = {"token": "1", "password": "1", "wrong": "0", "nobody": "0"}
            wait_until(lambda: up() == expected, "two of four are let in")
            assert database.values('app_requests_total{job=~"token|password"}')
            for path in (files.token, theirs.token):
                files.write(path, "an0ther-token-of-some-length")
            files.write(files.users, hashed("another"))
            files.write(theirs.users, "another")
            renewed = time.time()

            def is_let_in() -> bool:
                histories = [
                    database.history(f'up{{job="{job}"}}') for job in ("token", "password")
                ]
                last = [[up for at, up in each if at > renewed][-3:] for each in histories]
                return last == [[1, 1, 1]] * 2

            wait_until(is_let_in, "they are let in with what was renewed")
        assert status_of(running.metrics_port, bearer()) == 401
        assert status_of(running.metrics_port, basic()) in (401, 429)


def tmp_path_in(directory: Path, name: str) -> Path:
    """Return a new directory."""
    path = directory / name
    path.mkdir()
    return path


@pytest.mark.parametrize("is_typed", [True, False], ids=["typed", "in the address"])
def test_live_page(files: Files, is_typed: bool) -> None:
    """The live page goes on by itself in a browser whose reader gives the password."""
    with server(NEW, files.settings()) as running, Browser() as browser:
        wait_until_scraped(running)
        page = f"{HOST}:{running.metrics_port}/"
        if is_typed:
            browser.credentials = (USER, PASSWORD)
            browser.show(f"http://{page}")
        else:
            browser.show(f"http://{USER}:{urllib.parse.quote(PASSWORD)}@{page}")
        wait_until(
            lambda: browser.run("document.getElementById('state').textContent") == "Live",
            "the page has asked for figures",
        )
        assert browser.run("document.querySelectorAll('#workers tbody tr').length") == 2
        browser.look()
        assert browser.errors == []


def test_top(files: Files, tmp_path: Path) -> None:
    """It is let in with what the environment names, says what is missing, and takes no secret."""
    with server(NEW, files.settings()) as running:
        wait_until_scraped(running)
        url = f"http://{HOST}:{running.metrics_port}"
        password = tmp_path / "password"
        password.write_text(f"{PASSWORD}\n")

        def top(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "obskit_gunicorn", "top", source],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={"PATH": os.environ["PATH"], **environment},
            )

        for environment in (
            {"OBSKIT_TOP_TOKEN": TOKEN},
            {"OBSKIT_TOP_TOKEN_FILE": str(files.token)},
            {"OBSKIT_TOP_USER": USER, "OBSKIT_TOP_PASSWORD_FILE": str(password)},
        ):
            done = top(url, **environment)
            assert done.returncode == 0, done.stderr
            assert str(min(running.worker_pids())) in done.stdout
        for done, said in (
            (top(url), "answers 401: it wants to know who asks: set OBSKIT_TOP_TOKEN"),
            (top(url, OBSKIT_TOP_TOKEN="wr0ng"), "answers 401"),
            (top(url, OBSKIT_TOP_USER=USER), "belong together"),
            (top(url.replace("//", f"//{USER}:wr0ng@")), "everybody on this machine could read"),
        ):
            assert done.returncode == 1
            assert said in done.stdout + done.stderr
            assert "wr0ng" not in done.stdout + done.stderr


def test_workers_show_the_fleet(files: Files, tmp_path: Path) -> None:
    """An application shows the fleet, by way of the exporter's socket; others need the token."""
    for store in stores.running(tmp_path / "store"):
        environment = {"OBSKIT_METRICS_REDIS": store.url, "OBSKIT_METRICS_REDIS_INTERVAL": "0.5"}
        with server(NEW, files.settings(), app=FLEET_APP, environment=environment) as running:
            wait_until(lambda: running.get("/fleet").status == 200, "the application shows it")
            assert status_of(running.metrics_port, path="/metrics/fleet") == 401
            assert status_of(running.metrics_port, bearer(), "/metrics/fleet") == 200


def test_tls(directory: Path, files: Files) -> None:
    """A token travels encrypted where there is a certificate."""
    authority = trustme.CA()
    pem = directory / "tls.pem"
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(pem))
    with (
        authority.cert_pem.tempfile() as ca,
        ServeProcess(directory, *files.flags(), "--certfile", str(pem)) as served,
    ):
        page = f"https://{HOST}:{served.port}/metrics"
        assert curl("--cacert", ca, page) == "401"
        assert curl("--cacert", ca, "--oauth2-bearer", TOKEN, page) == "200"


# ------------------------------------------------------------------------------------------------
# Files


def test_files_that_go_and_come(served: ServeProcess, files: Files) -> None:
    """Without its file nobody is let in; one line says so, and one that it is right again."""
    assert served.get(headers=bearer()).status == served.get(headers=basic()).status == 200
    files.token.unlink()
    files.users.write_text("")
    for _ in range(3):
        assert served.get(headers=bearer()).status == served.get(headers=basic()).status == 401
    assert served.get("/-/healthy").status == 200
    for path in (files.token, files.users):
        assert served.log().count(f"{path} cannot be used") == 1
    files.write(files.token, "another")
    files.write(files.users, hashed(PASSWORD))
    assert served.get(headers=bearer("another")).status == 200
    wait_until(lambda: served.get(headers=basic()).status == 200, "the password is right again")
    assert served.log().count("is in use again") == 2


def test_without_the_library(directory: Path, files: Files) -> None:
    """Passwords are closed and not open, the log says what to install, and the token works."""
    modules = {"bcrypt.py": "raise ImportError('not installed')\n"}
    with ServeProcess(directory, *files.flags(), files=modules) as served:
        assert served.get(headers=basic()).status == 401
        assert served.get().status == 401
        assert served.get(headers=bearer()).status == 200
        wait_until(lambda: 'pip install "obskit-gunicorn[auth]"' in served.log(), "the log says it")


def test_probes_behind_it(directory: Path, files: Files) -> None:
    """Where it is told, probes need it too."""
    with ServeProcess(directory, *files.flags(), "--auth-probes", "yes") as served:
        assert served.get("/-/healthy").status == 401
        assert served.get("/-/healthy", headers=bearer()).status == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "No such file"), ("", "it is empty"), ("s3cret s3cret", "more than one token")],
)
def test_a_wrong_file_stops_the_start(tmp_path: Path, text: str | None, said: str) -> None:
    """What is wrong with it is an error that names the option, and shows nothing of it."""
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    settings = f"metrics_bearer_token_file = {str(path)!r}"
    with server(NEW, settings, serving=False) as running:
        assert running.exit_status() != 0
        assert re.search(f"metrics_bearer_token_file in .*conf.py is '{path}'", running.log())
        assert said in running.log()
        assert "s3cret" not in running.log()


@needs_root
def test_files_of_root(tmp_path: Path) -> None:
    """Files that only root may read are handed to the exporter, which is not root.

    It has them after its end and after a SIGUSR2 too; one that was replaced lets nobody in until a
    SIGHUP.
    """
    if not can_run(NEW, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {NEW.path}")
    folder = tmp_path_in(tmp_path, "secrets")
    files = Files(folder)
    folder.chmod(0o700)
    with server(NEW, f"user = group = {NOBODY}\n{files.settings()}") as running:
        port = running.metrics_port
        wait_until_scraped(running)
        (pid,) = running.exporter_pids()
        assert os.stat(f"/proc/{pid}").st_uid == NOBODY
        assert stat.S_IMODE(files.token.stat().st_mode) == 0o600
        assert status_of(port, bearer()) == status_of(port, basic()) == 200
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: running.exporter_pids() not in ({pid}, set()), "there is another one")
        wait_until_scraped(running)
        assert status_of(port, bearer()) == 200
        files.write(files.token, "another")
        files.users.write_text(hashed("another"))  # the same file: it is read as it is now
        assert status_of(port, bearer()) == status_of(port, bearer("another")) == 401
        assert status_of(port, basic()) in (401, 429)
        wait_until(lambda: status_of(port, basic("another")) == 200, "the new password is right")
        assert "send Gunicorn a SIGHUP" in running.log()
        (pid,) = running.exporter_pids()
        running.send_signal(signal.SIGHUP)
        wait_until(
            lambda: pid not in running.exporter_pids() and running.exporter_pids(),
            "there is another exporter",
        )
        wait_until(lambda: status_of(port, bearer("another")) == 200, "the new token is right")
        old = running.arbiter_pid
        running.send_signal(signal.SIGUSR2)
        new = wait_until(running.upgraded_arbiter_pid, "there is a new arbiter")
        wait_until(lambda: running.exporter_pids(new), "it has an exporter")
        running.send_signal(signal.SIGTERM, old)
        wait_until(lambda: not running.exporter_pids(old), "the old one has ended")
        wait_until(lambda: status_of(port, bearer("another")) == 200, "the new one knows it")
        assert status_of(port) == 401


# ------------------------------------------------------------------------------------------------
# Guesses

MOST_SECONDS = 0.25


class Asking(Repeating):
    """A thread that asks again and again, as a probe or a scraper does; a context manager.

    Attributes:
        seconds: How long each answer took.
        wrong: What was answered that is not 200.
    """

    def __init__(self, served: ServeProcess, path: str, headers: Mapping[str, str]) -> None:
        """Prepare the thread."""
        self.seconds: list[float] = []
        self.wrong: list[object] = []
        self._served, self._path, self._headers = served, path, headers
        super().__init__(0.1)

    def once(self) -> None:
        """Ask."""
        started = time.monotonic()
        try:
            status: object = self._served.get(self._path, headers=self._headers).status
        except OSError as error:
            status = repr(error)
        self.seconds.append(time.monotonic() - started)
        if status != 200:
            self.wrong.append(status)

    def share(self, share: float) -> float:
        """Return how long at most this share of answers took."""
        return sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


GUESSES = """
import base64, collections, json, socket, sys, threading, time

port, clients, pause, user, first = json.loads(sys.argv[1])
answers, over = collections.Counter(), threading.Event()


def ask(number, guess):
    packed = base64.b64encode(f"{user}:{number}-{guess}".encode()).decode()
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            lines = ["GET /metrics HTTP/1.0", f"Authorization: Basic {packed}", "", ""]
            client.sendall("\\r\\n".join(lines).encode())
            return client.recv(100)[9:12].decode() or "cut"
    except OSError as error:
        return type(error).__name__


def guess(number):
    guess = 0
    while not over.wait(pause):
        guess += 1
        answers[ask(number, guess)] += 1


threads = [threading.Thread(target=guess, args=(first + number,)) for number in range(clients)]
for thread in threads:
    thread.start()
print("guessing", flush=True)
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(json.dumps(answers))
"""


class Guessing:
    """Clients with another wrong password each time, in processes of their own; a context manager.

    Attributes:
        answers: What they were answered, once they have ended.
    """

    def __init__(self, port: int, clients: int, pause: float) -> None:
        """Describe them; entering the context starts them."""
        self.answers: Counter[str] = Counter()
        half = clients // 2
        self._arguments = [json.dumps([port, half, pause, USER, at]) for at in (0, half)]
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Guessing:
        """Start them, and wait until they guess."""
        for each in self._arguments:
            process = subprocess.Popen(
                [sys.executable, "-c", GUESSES, each],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._processes.append(process)
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "guessing\n"
        return self

    def __exit__(self, *error: object) -> None:
        """End them."""
        for process in self._processes:
            self.answers.update(json.loads(process.communicate(timeout=60)[0]))


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [pytest.param(3, 0.2, id="short"), pytest.param(60, 0.05, id="long", marks=pytest.mark.load)],
)
def test_eighty_clients_guess(directory: Path, tmp_path: Path, seconds: int, pause: float) -> None:
    """Probes and the right scraper are answered as ever, and nobody gets an error of ours."""
    files = Files(tmp_path)
    files.write(files.users, hashed(PASSWORD, 10))
    with ServeProcess(directory, *files.flags()) as served:
        assert served.get(headers=basic()).status == 200
        memory = served.resident_kilobytes()
        guessing = Guessing(served.port, 80, pause)
        probe, scraper = Asking(served, "/-/healthy", {}), Asking(served, "/metrics", basic())
        with guessing, probe, scraper:
            time.sleep(seconds)  # what is tested is how they fare during that time
        assert served.resident_kilobytes() < memory + 50_000
    for each in (probe, scraper):
        assert each.wrong == []
        print(f"{len(each.seconds)} answers, slowest {each.share(1):.3f} s")
        if seconds >= 60:
            assert each.share(0.99) < MOST_SECONDS
    print(guessing.answers)
    assert set(guessing.answers) <= {"401", "429"}
    assert guessing.answers["401"] > 0
    assert guessing.answers["429"] > 0


def test_a_right_password_that_nobody_knows_yet(directory: Path, tmp_path: Path) -> None:
    """A scraper that comes for the first time while eighty guess is let in at its second try.

    What was refused for lack of time goes first the next time.
    """
    files = Files(tmp_path)
    files.write(files.users, hashed(PASSWORD, 11))
    with ServeProcess(directory, *files.flags()) as served, Guessing(served.port, 80, 0.2):
        statuses = [served.get(headers=basic()).status for _ in range(3)]
    assert statuses[1:] == [200, 200]
    assert statuses[0] in (200, 429)
