"""The multiprocess directory's life: made, shared, handed on, damaged, taken away, removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import apps
from tests.support.checks import check_counts, slot_of, total_as_others_read_it
from tests.support.client import Load, Watch
from tests.support.process import (
    GunicornProcess,
    can_run,
    can_unshare,
    get,
    interpreters,
    metric_files,
    on_a_volume,
    send_if_alive,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.process import Interpreter

NOBODY = 65534
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
IS_ROOT = os.geteuid() == 0

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    workers = 2
"""

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")


@pytest.fixture
def dropped(interpreter: Interpreter) -> int:
    """Return the uid of a user without rights who can run the interpreter."""
    if not IS_ROOT:
        pytest.skip("needs root to become another user")
    if not can_run(interpreter, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {interpreter.path}")
    return NOBODY


def error_lines(server: GunicornProcess) -> list[str]:
    """Return the error lines of the log that are ours."""
    return [line for line in server.log().splitlines() if "[ERROR]" in line and "obskit" in line]


def check_serves_without_sharing(server: GunicornProcess, *words: str) -> None:
    """Check that the application serves, its metrics stay in memory, and one line says why."""
    with Load(server.port) as load:
        load.wait_for(100)
    assert not load.unknown
    assert server.tally() == load.answered
    assert server.metric("obskit_gunicorn_values_not_shared") > 0
    old = server.wait_for_workers(2)
    with Load(server.port) as load:
        with load.paused():
            server.send_signal(signal.SIGKILL, min(old))
        server.wait_for_workers(2, without={min(old)})
        load.wait_for(50)
    lines = error_lines(server)
    assert len(lines) == 1, server.log()
    for word in words:
        assert word in lines[0]


# ------------------------------------------------------------------------------------------------
# The private directory


@pytest.mark.releases_differ
def test_private_directory_is_private_kept_through_an_upgrade_and_removed(
    interpreter: Interpreter,
) -> None:
    """Unset, the directory is of mode 0700, outlives the first arbiter, and goes with the last."""
    with GunicornProcess(interpreter, CONFIG) as server:
        (path,) = server.private_directories()
        assert path.stat().st_mode & 0o7777 == 0o700
        with Load(server.port) as load:
            load.wait_for(30)
            old = server.arbiter_pid
            server.start_upgrade()
            server.send_signal(signal.SIGTERM, old)
            wait_until(
                lambda: old not in {process.pid for process in server.processes()},
                "the old arbiter has ended",
            )
            wait_until(server.pid_path.exists, "the new arbiter has taken over")
            load.wait_for(30)
        assert server.private_directories() == [path]
        check_counts(server, load)
        server.stop()
        assert not server.private_directories()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("daemon", [False, True])
def test_private_directory_is_removed_however_the_server_is_stopped(
    newest: Interpreter, number: signal.Signals, daemon: bool
) -> None:
    """Each way to stop a server, daemon or not, leaves nothing behind."""
    with GunicornProcess(newest, CONFIG, daemon=daemon) as server:
        server.get("/")
        assert len(server.private_directories()) == 1
        server.stop(number)
        assert not list(server.run.glob("*obskit*"))


def test_private_directory_is_removed_although_a_worker_had_to_be_killed(
    interpreter: Interpreter,
) -> None:
    """A worker that Gunicorn kills at the end of the graceful time-out does not leave it behind."""
    with GunicornProcess(interpreter, CONFIG) as server:
        with pytest.raises(OSError, match="timed out"):
            server.get("/block?s=20", timeout=0.5)
        server.stop()
        assert not server.private_directories()


def test_private_directory_is_removed_by_the_last_worker_of_a_killed_arbiter(
    interpreter: Interpreter,
) -> None:
    """After the arbiter's SIGKILL its orphaned workers keep the directory while they live."""
    with GunicornProcess(interpreter, CONFIG + "    timeout = 4\n") as server:
        (path,) = server.private_directories()
        orphans = server.wait_for_workers(2)
        for _ in range(10):
            server.get("/")
        server.send_signal(signal.SIGKILL)
        assert orphans & {process.pid for process in server.processes()}
        assert path.is_dir()
        server.wait_until_gone()
        assert not server.private_directories()


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(interpreter: Interpreter) -> None:
    """The next start removes what killed runs have left, not what is in use or somebody else's."""
    with ExitStack() as stack:
        alive = stack.enter_context(GunicornProcess(interpreter, CONFIG))
        (kept,) = alive.private_directories()
        foreign = alive.run / "obskit-gunicorn-0-somebody"
        foreign.mkdir()
        (foreign / "notes").write_text("mine")
        environment = {"XDG_RUNTIME_DIR": str(alive.run)}
        killed = stack.enter_context(GunicornProcess(interpreter, CONFIG, environment=environment))
        (left,) = set(alive.private_directories()) - {kept, foreign}
        # At one stroke: an orphaned worker that finds the time removes the directory.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in killed.processes():
                send_if_alive(number, process.pid)
        killed.wait_until_gone()
        assert left.is_dir()
        successor = stack.enter_context(
            GunicornProcess(interpreter, CONFIG, environment=environment)
        )
        assert not left.exists()
        assert (foreign / "notes").read_text() == "mine"
        assert kept.is_dir()
        with Load(alive.port) as load, Load(successor.port) as more:
            load.wait_for(20)
            more.wait_for(20)
        check_counts(alive, load)
        assert successor.metric("app_requests_total") == more.answered


# ------------------------------------------------------------------------------------------------
# A directory of one's own


@pytest.mark.parametrize("where", ["environment", "class"])
def test_relative_directory_is_taken_from_where_gunicorn_was_started(
    interpreter: Interpreter, where: str, place: Path
) -> None:
    """A relative path means the same before and after ``chdir``, SIGHUP and SIGUSR2."""
    settings = {
        "environment": "",
        "class": '    multiproc_dir = "metrics"\n',
    }[where]
    config = f"{CONFIG}    chdir = {str(place / 'elsewhere')!r}\n{settings}"
    with GunicornProcess(
        interpreter,
        config,
        # Absolute, both: after SIGUSR2 Gunicorn would look for them in the other directory.
        config_arguments=["-c", str(place / "gunicorn.conf.py")],
        root=place,
        files={"elsewhere/app.py": apps.WSGI},
        environment={VARIABLE: "metrics"} if where == "environment" else {},
    ) as server:
        with Load(server.port) as load:
            load.wait_for(20)
            old = server.wait_for_workers(2)
            server.send_signal(signal.SIGHUP)
            server.wait_for_workers(2, without=old)
            first = server.arbiter_pid
            server.start_upgrade()
            server.send_signal(signal.SIGTERM, first)
            load.wait_for(50)
        assert server.metric("app_requests_total") == server.tally()
        assert list((server.root / "metrics").glob("counter_*.db"))
        assert not (server.root / "elsewhere" / "metrics").exists()


@pytest.mark.parametrize("preload", [False, True])
def test_directory_of_raw_env_is_used(interpreter: Interpreter, place: Path, preload: bool) -> None:
    """``raw_env`` is as good as the environment, although Gunicorn applies it later."""
    config = f"""{CONFIG}
    preload_app = {preload}
    raw_env = ["{VARIABLE}={place}/metrics"]
"""
    with GunicornProcess(interpreter, config) as server:
        with Load(server.port) as load:
            load.wait_for(20)
            old = server.wait_for_workers(2)
            server.send_signal(signal.SIGHUP)
            server.wait_for_workers(2, without=old)
            load.wait_for(20)
        assert server.metric("app_requests_total") == server.tally()
        assert not server.private_directories()
    assert total_as_others_read_it(place / "metrics") == load.answered


def test_next_start_begins_a_new_generation(interpreter: Interpreter) -> None:
    """A start where nobody is begins at zero, pid-named files of others included."""
    with ExitStack() as stack:
        first = stack.enter_context(GunicornProcess(interpreter, CONFIG, shared=True))
        with Load(first.port) as load:
            load.wait_for(20)
        first.stop()
        directory = first.metrics_directory
        assert total_as_others_read_it(directory) == load.answered
        shutil.copy(next(directory.glob("counter_slot*.db")), directory / "counter_4711.db")
        (directory / "README").write_text("not a metric file")
        second = stack.enter_context(
            GunicornProcess(interpreter, CONFIG, environment={VARIABLE: str(directory)})
        )
        with Load(second.port) as load:
            load.wait_for(20)
        check_counts(second, load)
        assert (directory / "README").read_text() == "not a metric file"


def test_kept_metrics_go_on_at_the_next_start(newest: Interpreter) -> None:
    """With ``metrics_keep`` the totals of the run before go on."""
    config = CONFIG + "    metrics_keep = True\n"
    with ExitStack() as stack:
        first = stack.enter_context(GunicornProcess(newest, config, shared=True))
        with Load(first.port) as load:
            load.wait_for(20)
        first.stop()
        environment = {VARIABLE: str(first.metrics_directory)}
        second = stack.enter_context(GunicornProcess(newest, config, environment=environment))
        with Load(second.port) as more:
            more.wait_for(20)
        assert second.metric("app_requests_total") == load.answered + more.answered


# ------------------------------------------------------------------------------------------------
# Directories that cannot be used


def test_file_in_the_directorys_place(interpreter: Interpreter, place: Path) -> None:
    """The application serves, its metrics stay in memory, one line says what to do."""
    path = place / "metrics"
    path.write_text("not a directory")
    with GunicornProcess(interpreter, CONFIG, environment={VARIABLE: str(path)}) as server:
        check_serves_without_sharing(server, str(path), "not a directory")
    assert path.read_text() == "not a directory"


def test_directory_that_is_not_writable(
    interpreter: Interpreter, place: Path, dropped: int
) -> None:
    """The application serves, its metrics stay in memory, one line says what to do."""
    path = place / "metrics"
    path.mkdir(mode=0o755)
    with GunicornProcess(
        interpreter, CONFIG, environment={VARIABLE: str(path)}, user=dropped
    ) as server:
        check_serves_without_sharing(server, str(path), "writable", str(dropped))
    assert not list(path.iterdir())


def test_directory_that_cannot_be_made(interpreter: Interpreter, place: Path, dropped: int) -> None:
    """A missing directory below one that is not writable is one line, not an outage."""
    path = place / "deep" / "metrics"
    with GunicornProcess(
        interpreter, CONFIG, environment={VARIABLE: str(path)}, user=dropped
    ) as server:
        check_serves_without_sharing(server, str(path), "writable")


@needs_root
def test_directory_on_a_read_only_file_system(interpreter: Interpreter, place: Path) -> None:
    """The application serves, its metrics stay in memory, one line says what to do."""
    with mounted(interpreter, place, "ro") as server:
        check_serves_without_sharing(server, str(place), "Read-only file system", "writable")


@needs_root
def test_full_volume(interpreter: Interpreter, place: Path) -> None:
    """No worker dies by SIGBUS, each says once that the volume is full, and new room is used."""
    with mounted(interpreter, place, "size=24k") as server:
        with Load(server.port) as load:
            workers = server.wait_for_workers(2)
            load.wait_for(200)
        assert not load.unknown
        assert server.worker_pids() == workers
        # There is room for a few files only.
        assert server.metric("obskit_gunicorn_values_not_shared") > 0
        lines = error_lines(server)
        assert len(lines) == len({re.findall(r"\[(\d+)\]", line)[0] for line in lines})
        assert all("volume is full" in line for line in lines)
        assert lines
        subprocess.run(
            f"nsenter --target {server.arbiter_pid} --mount "
            f"mount -o remount,size=16m {place}".split(),
            check=True,
            timeout=10,
        )

        wait_until(lambda: all_is_shared(server), "values have moved into the files")


def mounted(interpreter: Interpreter, place: Path, options: str) -> GunicornProcess:
    """Return a server whose metrics directory is a file system of its own."""
    return GunicornProcess(
        interpreter,
        CONFIG,
        environment={VARIABLE: str(place)},
        prefix=on_a_volume(VARIABLE, options),
    )


def test_file_system_without_flock(interpreter: Interpreter) -> None:
    """The application serves, its metrics stay in memory, one line says what to do."""
    config = f"""
import errno
import fcntl


def no_flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")


fcntl.flock = no_flock
{CONFIG}
"""
    with GunicornProcess(interpreter, config, shared=True) as server:
        check_serves_without_sharing(server, str(server.metrics_directory), "flock")


STARVING = '''
import os
import resource

held = []


def starve(left):
    """Leave a process so many descriptors that it may still open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    for _ in range(left):
        os.close(held.pop())


def feed():
    """Give back what was taken."""
    while held:
        os.close(held.pop())
'''

# The tally is open before descriptors run out.
STARVING_APP = (
    apps.WSGI.replace("def application(", "def answer(")
    + """
import starving

tally = os.open(os.environ["OBSKIT_TEST_TALLY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def application(environ, start_response):
    left = os.environ.get("LEFT")
    if environ["PATH_INFO"] == "/" and left and not os.path.exists("enough"):
        starving.starve(int(left))
    try:
        return answer(environ, start_response)
    finally:
        starving.feed()
"""
)


def check_no_count_was_lost_for_want_of_descriptors(server: GunicornProcess) -> None:
    """Check that each worker complained once, and that its values are shared in the end."""
    lines = error_lines(server)
    assert lines, server.log()
    assert all("descriptors" in line for line in lines), lines
    assert len(lines) == len({re.findall(r"\[(\d+)\]", line)[0] for line in lines}), lines
    (server.root / "enough").touch()

    wait_until(lambda: all_is_shared(server), "values have moved into the files")


def all_is_shared(server: GunicornProcess) -> bool:
    """Count once more, and return whether counts of every type of metric are complete."""
    server.get("/")
    metrics, tally = server.metrics(), server.tally()
    return metrics["obskit_gunicorn_values_not_shared", frozenset()] == 0 and all(
        metrics.get((name, frozenset())) == tally
        for name in ("app_requests_total", "app_duration_seconds_count", "app_sum")
    )


@pytest.mark.parametrize("left", [0, 1, 2, 3, 5])
def test_no_descriptors_for_metric_files(interpreter: Interpreter, left: int) -> None:
    """However few are left, each request is served, and no count is lost in the end."""
    with GunicornProcess(
        interpreter,
        CONFIG + "    preload_app = True\n",  # so that workers open their files when they count
        STARVING_APP,
        files={"starving.py": STARVING},
        environment={"LEFT": str(left)},
        shared=True,
    ) as server:
        workers = server.wait_for_workers(2)
        with Load(server.port) as load:
            load.wait_for(50)
        assert not load.unknown
        assert server.worker_pids() == workers
        check_no_count_was_lost_for_want_of_descriptors(server)
        assert server.worker_pids() == workers


def test_no_descriptors_for_a_lease(interpreter: Interpreter) -> None:
    """A worker that can take no lease when it boots serves, and takes one later."""
    # A sync worker needs two for its pipe. There is one left for a lock, and none for a lease.
    config = f"""
import starving
{CONFIG}
    preload_app = True

    def post_fork(self, server, worker):
        super().post_fork(server, worker)
        starving.starve(3)

    def post_worker_init(self, worker):
        starving.feed()
        super().post_worker_init(worker)
"""
    with GunicornProcess(
        interpreter, config, STARVING_APP, files={"starving.py": STARVING}, shared=True
    ) as server:
        workers = server.wait_for_workers(2)
        with Load(server.port) as load:
            load.wait_for(50)
        assert not load.unknown
        check_no_count_was_lost_for_want_of_descriptors(server)
        assert server.worker_pids() == workers


# ------------------------------------------------------------------------------------------------
# Taken away under a running server


@pytest.mark.parametrize("what", ["directory", "content", "leases"])
def test_directory_removed_under_a_running_server(interpreter: Interpreter, what: str) -> None:
    """Requests go on, new workers share again, and two processes never write one file."""
    with GunicornProcess(interpreter, CONFIG, shared=True) as server:
        directory = server.metrics_directory
        with Load(server.port) as load:
            load.wait_for(30)
            workers = server.wait_for_workers(2)
            with load.paused():
                if what == "directory":
                    shutil.rmtree(directory)
                else:
                    for path in directory.glob("*" if what == "content" else "*.lease"):
                        path.unlink()
            load.wait_for(30)
            assert server.worker_pids() == workers
            server.send_signal(signal.SIGHUP)
            workers |= server.wait_for_workers(2, without=workers)
            load.wait_for(10)
        assert not load.unknown
        assert directory.is_dir()
        before, tally = server.metric("app_requests_total"), server.tally()
        with Load(server.port) as load, Watch(server) as watch:
            load.wait_for(30)
            server.send_signal(signal.SIGHUP)
            server.wait_for_workers(2, without=workers)
            load.wait_for(30)
        assert not watch.wrong
        assert server.metric("app_requests_total") - before == server.tally() - tally
        if what == "leases":
            # Only names that people read were lost.
            assert server.metric("app_requests_total") == server.tally()
        assert "removed or cleaned" in server.log()


@pytest.mark.parametrize("asks", ["new series", "again", "nothing"])
def test_running_worker_carries_over_what_it_has_counted(newest: Interpreter, asks: str) -> None:
    """A worker whose directory was removed keeps its counts, notices it, and shares them again.

    It notices when it needs a new series, and otherwise at a heartbeat.
    """
    config = CONFIG.replace("workers = 2", "workers = 1")
    if asks == "nothing":
        config += '\n    worker_class = "gthread"'  # an idle sync worker beats every 15 seconds
    with GunicornProcess(newest, config, shared=True) as server:
        worker = server.wait_for_workers(1)
        for _ in range(20):
            server.get("/")
        shutil.rmtree(server.metrics_directory)
        server.metrics_directory.mkdir()

        def carried() -> bool:
            if asks == "new series":
                server.get(f"/label?x={server.tally()}")
            if asks != "nothing":
                server.get("/")
            return total_as_others_read_it(server.metrics_directory) == server.tally()

        wait_until(carried, "the worker has carried its counts over")
        assert server.worker_pids() == worker


@pytest.mark.parametrize("what", ["directory", "content", "place"])
def test_cleared_directory_is_made_again_at_the_next_scrape(
    newest: Interpreter, place: Path, what: str
) -> None:
    """No count is lost or shown twice, no counter goes backwards, and the server stays ready."""
    session = place / "run" / "session"
    session.mkdir(parents=True, mode=0o700)
    environment = {"RUNTIME_DIRECTORY": f"{session}:{session.parent}"}
    with GunicornProcess(
        newest, CONFIG, exporter=True, environment=environment, root=place
    ) as server:
        (first,) = session.glob("obskit-gunicorn-*")
        workers = server.wait_for_workers(2)
        exporters = server.exporter_pids()
        with Load(server.port) as load, Watch(server, port=server.metrics_port) as watch:
            load.wait_for(30)
            watch.wait_for_scrapes(3)
            for path in first.iterdir():
                path.unlink()
            if what != "content":
                first.rmdir()
            if what == "place":
                session.rmdir()

            def anew() -> list[Path]:
                return [
                    lock.parent
                    for lock in session.parent.rglob("slots.lock")
                    if (lock.parent / "slot0.lease").exists()
                ]

            wait_until(anew, "the directory is there again")
            watch.wait_for_scrapes(5)
            load.wait_for(30)
            assert get(server.metrics_port, "/-/ready").status == 200
            assert watch.last["gunicorn_workers_ready", frozenset()] == 2
            assert server.worker_pids() == workers
            assert server.exporter_pids() == exporters
            # One worker makes a series, moves, and is killed; the other one is killed where it is.
            for number in range(6):
                server.get(f"/label?x={number}")
            watch.wait_for_scrapes(3)
            for worker in workers:
                server.send_signal(signal.SIGKILL, worker)
            server.wait_for_workers(2, without=workers)
            load.wait_for(30)
            wait_until(
                lambda: server.scrape()["gunicorn_workers_ready", frozenset()] == 2, "both serve"
            )
        # A gauge, which may be short for a moment while a worker moves.
        assert not [wrong for wrong in watch.wrong if "app_sum{}" not in wrong]
        metrics = server.scrape()
        total = metrics["app_requests_total", frozenset()]
        assert total == server.tally()
        assert load.answered <= total <= load.answered + len(load.unknown)
        assert metrics["app_duration_seconds_count", frozenset()] == total
        assert metrics["app_size_bytes_sum", frozenset()] == 3 * total
        assert metrics["app_sum", frozenset()] == total
        assert metrics["app_max", frozenset()] == 7
        assert metrics["gunicorn_workers_ready", frozenset()] == 2
        assert metrics["obskit_gunicorn_directory_usable", frozenset()] == 1
        labelled = [value for (name, _), value in metrics.items() if name == "app_labelled_total"]
        assert labelled == [1.0] * 6
        assert server.exporter_pids() == exporters
        assert server.log().count("was removed or cleaned while in use") == 1
        (again,) = anew()
        assert (again == first) == (what != "place")
        server.stop()
        assert not again.exists()


# ------------------------------------------------------------------------------------------------
# Damaged files, see mmap_dict of prometheus_client for the format


def entries(content: bytes) -> list[tuple[int, int]]:
    """Return start and length of the entries of a metric file."""
    (used,) = struct.unpack_from("i", content)
    found, position = [], 8
    while position < used:
        (length,) = struct.unpack_from("i", content, position)
        size = 4 + length + (8 - (length + 4) % 8) + 16
        assert content[position + 4 : position + 6] == b'["'
        found.append((position, size))
        position += size
    return found


def header_beyond_the_end(content: bytes) -> bytes:
    """Say that more is used than there is."""
    return struct.pack("i", 2**31 - 1) + content[4:]


def three_bytes(content: bytes) -> bytes:
    """Leave not even a header."""
    return content[:3]


def bad_key_length(content: bytes) -> bytes:
    """Break the last entry's length."""
    position, _ = entries(content)[-1]
    return content[:position] + struct.pack("i", 10**9) + content[position + 4 :]


def not_utf8(content: bytes) -> bytes:
    """Break the last entry's key."""
    position, size = entries(content)[-1]
    key = position + 4
    return content[:key] + b"\xff" * (size - 20) + content[position + size - 16 :]


def empty(content: bytes) -> bytes:
    """Leave nothing."""
    return b""


def negative_header(content: bytes) -> bytes:
    """Say that less than nothing is used."""
    return struct.pack("i", -5) + content[4:]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    # How, and whether the first entries can still be read.
    "header beyond the end": (header_beyond_the_end, True),
    "three bytes": (three_bytes, False),
    "bad key length": (bad_key_length, True),
    "not UTF-8": (not_utf8, True),
    "empty": (empty, False),
    "negative header": (negative_header, True),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("preload", [False, True])
def test_damaged_file_under_a_booting_worker(
    interpreter: Interpreter, damage: str, preload: bool
) -> None:
    """The worker boots, what can be read counts on, the file is kept, one line says so."""
    do_damage, keeps = DAMAGES[damage]
    config = CONFIG.replace("workers = 2", f"workers = 1\n    preload_app = {preload}")
    with GunicornProcess(interpreter, config, shared=True) as server:
        directory = server.metrics_directory
        (worker,) = server.wait_for_workers(1)
        for page in ("/",) * 20 + ("/label?x=a", "/label?x=b"):
            assert server.get(page).status == 200
        slot = slot_of(directory, worker)
        arbiter = server.arbiter_pid
        server.send_signal(signal.SIGSTOP, arbiter)
        try:
            server.send_signal(signal.SIGKILL, worker)
            wait_until(
                lambda: worker not in {process.pid for process in server.processes()},
                "the worker is dead",
            )
            path = directory / f"counter_{slot}.db"
            others = total_as_others_read_it(directory) - 20
            damaged = do_damage(path.read_bytes())
            path.write_bytes(damaged)
        finally:
            server.send_signal(signal.SIGCONT, arbiter)
        server.wait_for_workers(1, without={worker})
        for _ in range(10):
            assert server.get("/").status == 200
        kept = 20 if keeps else 0
        assert server.metric("app_requests_total") == others + kept + 10
        assert server.metric("app_duration_seconds_count") == 30
        assert server.arbiter_pid == arbiter
        if damaged:
            left = [found.read_bytes() for found in directory.glob("*.damaged")]
            assert len(left) == 1
            assert left[0].startswith(damaged)
        lines = [line for line in error_lines(server) if path.name in line]
        assert len(lines) == 1, server.log()
        # Another holder finds it whole.
        workers = server.worker_pids()
        server.send_signal(signal.SIGHUP)
        server.wait_for_workers(1, without=workers)
        assert server.get("/").status == 200
        assert server.metric("app_requests_total") == others + kept + 11
        assert len([line for line in error_lines(server) if path.name in line]) == 1


@pytest.mark.parametrize("damage", ["header beyond the end", "not UTF-8", "negative header"])
def test_damaged_file_under_a_running_worker(interpreter: Interpreter, damage: str) -> None:
    """Scrapes go on with what can be read, and workers with their service."""
    do_damage, _ = DAMAGES[damage]
    with GunicornProcess(interpreter, CONFIG, shared=True) as server:
        workers = server.wait_for_workers(2)
        with Load(server.port) as load:
            load.wait_for(50)
            server.get("/label?x=a")
            for path in server.metrics_directory.glob("counter_*.db"):
                if entries(path.read_bytes()):
                    damaged = do_damage(path.read_bytes())
                    with path.open("r+b") as file:  # in place: it stays mapped
                        file.write(damaged)
            load.wait_for(50)
            for _ in range(5):
                assert server.get("/metrics").status == 200
            old = server.worker_pids()
            server.send_signal(signal.SIGHUP)
            server.wait_for_workers(2, without=old)
            load.wait_for(50)
        assert old == workers
        assert not load.unknown
        assert server.metric("app_duration_seconds_count") == server.tally()
        assert server.stop() == 0


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 4096, b"\0" * 4096])
def test_foreign_file_in_the_directory(newest: Interpreter, content: bytes) -> None:
    """A file of a metric file's name that nobody can read fails no scrape and no boot."""
    with GunicornProcess(newest, CONFIG, shared=True) as server:
        with Load(server.port) as load:
            for name in ("counter_1.db", "gauge_livesum_slot7.db", "histogram_.db", "x.db"):
                (server.metrics_directory / name).write_bytes(content)
            (server.metrics_directory / "counter_directory.db").mkdir()
            load.wait_for(30)
            old = server.wait_for_workers(2)
            server.send_signal(signal.SIGHUP)
            server.wait_for_workers(2, without=old)
            load.wait_for(30)
        check_counts(server, load)


# ------------------------------------------------------------------------------------------------
# Users


@pytest.mark.parametrize("directory", ["private", "missing", "existing"])
@pytest.mark.parametrize("preload", [False, True])
def test_root_arbiter_with_user_and_group(
    interpreter: Interpreter, dropped: int, place: Path, directory: str, preload: bool
) -> None:
    """Workers that have dropped root share their metrics with the arbiter that keeps it."""
    config = f"""{CONFIG}
    user = {dropped}
    group = {dropped}
    umask = 0o077
    preload_app = {preload}
    max_requests = 40

    def post_fork(self, server, worker):
        super().post_fork(server, worker)
        import forks

        forks.FORKS.inc()  # here the worker still is root
"""
    forks = (
        "from prometheus_client import Counter\n"
        "FORKS = Counter('app_forks', 'Workers that were forked.')\n"
    )
    # Preloaded, this makes root write the first file.
    app = apps.WSGI + "\nREQUESTS.inc(0)\n"
    path = place / "metrics"
    if directory == "existing":
        path.mkdir(mode=0o755)
    server = GunicornProcess(
        interpreter,
        config,
        app,
        files={"forks.py": forks},
        environment={} if directory == "private" else {VARIABLE: str(path)},
    )
    server.tally_path.touch()
    server.tally_path.chmod(0o666)
    with server:
        found = re.findall(r"directory (/\S+?),? ", server.log())
        shared = Path(found[0])
        assert directory == "private" or shared == path
        with Load(server.port) as load, Watch(server) as watch:
            load.wait_for(100)
            with load.paused():
                wait_until(lambda: kill_a_counted_worker(server), "a worker is killed")
            load.wait_for(30)
            server.send_signal(signal.SIGHUP)
            load.wait_for(30)
            old = server.arbiter_pid
            server.start_upgrade()
            load.wait_for(30)
            server.send_signal(signal.SIGTERM, old)
            wait_until(
                lambda: old not in {process.pid for process in server.processes()},
                "the old arbiter has ended",
            )
            wait_until(server.pid_path.exists, "the new arbiter has taken over")
            load.wait_for(30)
        total = server.metric("app_requests_total")
        assert total == server.tally()
        assert load.answered <= total <= load.answered + len(load.unknown)
        assert not watch.wrong
        assert not error_lines(server)
        wait_until(lambda: counted_workers(server), "every fork is counted")
        assert server.metric("obskit_gunicorn_values_not_shared") == 0
        for name in shared.glob("*_slot*.db"):
            assert name.stat().st_uid == dropped
        if directory == "private":
            assert shared.stat().st_mode & 0o7777 == 0o700
        server.stop()
        assert shared.exists() == (directory != "private")


def counted_workers(server: GunicornProcess) -> set[int]:
    """Return the workers that were ever booted, if each has counted its fork by now.

    A worker announces itself before it counts, and a scrape may make another one: the last
    request of a worker.
    """
    forks = server.metric("app_forks_total")
    booted = server.booted_pids()
    assert forks <= len(booted), "a fork is counted once"
    return booted if forks == len(booted) else set()


def kill_a_counted_worker(server: GunicornProcess) -> bool:
    """Kill a worker that has counted its fork already; return whether there was one."""
    counted = counted_workers(server)
    return any(send_if_alive(signal.SIGKILL, pid) for pid in server.worker_pids() & counted)


# ------------------------------------------------------------------------------------------------
# Several servers on one directory


def slots(directory: Path, server: GunicornProcess) -> dict[str, int]:
    """Return the slots that a server's processes hold, with their pids."""
    pids = {process.pid for process in server.processes()}
    found = {}
    for path in directory.glob("*.lease"):
        text = path.read_text()
        if text and json.loads(text)["pid"] in pids:
            found[path.stem] = json.loads(text)["pid"]
    return found


def test_two_arbiters_share_one_directory(interpreter: Interpreter) -> None:
    """Neither wipes the other, neither writes the other's files, and the total is both's."""
    config = CONFIG + "    max_requests = 30\n"
    with ExitStack() as stack:
        one = stack.enter_context(GunicornProcess(interpreter, config, shared=True))
        directory = one.metrics_directory
        environment = {VARIABLE: str(directory)}

        def enter() -> GunicornProcess:
            return stack.enter_context(
                GunicornProcess(interpreter, config, environment=environment)
            )

        two = enter()
        with Load(one.port) as first, Load(two.port) as second, Watch(one) as watch:
            first.wait_for(100)
            second.wait_for(100)
            for server in (one, two):
                server.send_signal(signal.SIGHUP)
            first.wait_for(50)
            second.wait_for(50)
            assert not slots(directory, one).keys() & slots(directory, two).keys()
            # Stopped and started again beside the other it goes on from where it was.
            second.stop()
            two.stop()
            three = enter()
            with Load(three.port) as third:
                third.wait_for(50)
            first.wait_for(50)
        assert not watch.wrong
        total = one.tally() + two.tally() + three.tally()
        assert one.metric("app_requests_total") == three.metric("app_requests_total") == total
        three.stop()
        assert one.metric("app_requests_total") == total
        one.stop()
        four = enter()
        four.get("/")
        assert four.metric("app_requests_total") == 1


@pytest.mark.parametrize(
    "starts", [pytest.param(20, id="few"), pytest.param(60, id="sixty", marks=pytest.mark.load)]
)
def test_parallel_starts_on_a_directory_with_leftovers(newest: Interpreter, starts: int) -> None:
    """Many starts, five at a time on one directory: one of each wipes, nobody loses a count."""
    parallel_starts(newest, rounds=starts // 5, at_once=5)


@pytest.mark.load
@pytest.mark.timeout(600)
def test_sixty_starts_at_once(newest: Interpreter) -> None:
    """Sixty servers that start at the same moment on one directory lose no count."""
    parallel_starts(newest, rounds=2, at_once=60)


def parallel_starts(interpreter: Interpreter, *, rounds: int, at_once: int) -> None:
    """Start servers together, on what those before them have left; sum up what they count."""
    config = CONFIG.replace("workers = 2", "workers = 1")
    with ExitStack() as outer:
        first = outer.enter_context(GunicornProcess(interpreter, config, shared=True))
        directory = first.metrics_directory
        for _ in range(7):
            first.get("/")
        first.stop()
        shutil.copy(next(directory.glob("counter_slot*.db")), directory / "counter_4711.db")
        for number in range(rounds):
            assert total_as_others_read_it(directory) > 0, "there are leftovers"
            with ExitStack() as stack:
                servers = [
                    GunicornProcess(
                        interpreter,
                        config,
                        environment={VARIABLE: str(directory)},
                        serving=False,
                    )
                    for _ in range(at_once)
                ]
                # The first that is up counts at once, while others are still on their way.
                with ThreadPoolExecutor(at_once) as pool:
                    for server in servers:
                        stack.enter_context(server)
                    list(pool.map(count_ten, servers))
                for server in servers:
                    assert server.metric("app_requests_total") == 10 * at_once, f"round {number}"
                if number % 2:
                    for server in servers:
                        server.may_leave_processes()
                        for process in server.processes():
                            send_if_alive(signal.SIGKILL, process.pid)
        names = metric_files(directory)["counter"]
        assert len(names) <= 2 * 2 * at_once


def count_ten(server: GunicornProcess) -> None:
    """Wait for a server, and let it count ten requests."""
    server.wait_until_serving()
    for _ in range(10):
        assert server.get("/").status == 200


@needs_root
def test_two_pid_namespaces_share_one_directory(interpreter: Interpreter, place: Path) -> None:
    """Servers that have the same pids in namespaces of their own keep out of each other's way."""
    kinds = ["--pid", "--fork", "--mount", "--propagation", "private", "--mount-proc"]
    if not can_unshare(*kinds):
        pytest.skip("pid namespaces are not to be had")
    config = CONFIG + "    max_requests = 40\n"
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(
                GunicornProcess(
                    interpreter,
                    config,
                    environment={VARIABLE: str(place)},
                    prefix=["unshare", *kinds, "--kill-child"],
                    prefix_stays=True,
                )
            )
            for _ in range(2)
        )
        # Each calls itself by the same pid.
        assert own_pids(one) & own_pids(two)
        with Load(one.port) as first, Load(two.port) as second, Watch(one) as watch:
            for _ in range(3):
                for server, load in ((one, first), (two, second)):
                    # The last request may have been the last of a worker that is to be replaced.
                    with load.paused(), suppress(ProcessLookupError):
                        server.kill_a_worker()
                    load.wait_for(40)
            for server, load in ((one, first), (two, second)):
                server.send_signal(signal.SIGHUP)
                load.wait_for(40)
        assert not watch.wrong
        assert first.answered <= one.tally() <= first.answered + len(first.unknown)
        total = one.tally() + two.tally()
        assert one.metric("app_requests_total") == two.metric("app_requests_total") == total
        # Of two arbiters and two workers each, with overlap at the reload.
        assert len(metric_files(place)["counter"]) <= 2 * 6
        for server in (one, two):
            server.send_signal(signal.SIGTERM)
            server.wait_until_gone()


def own_pids(server: GunicornProcess) -> set[int]:
    """Return the pids of a server's processes as they see them themselves."""
    found = set()
    for process in server.processes():
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                found.add(int(line.split()[-1]))
    return found


def test_at_least_one_interpreter_is_tested() -> None:
    """The list of interpreters is not empty, so that no live test is left out in silence."""
    assert interpreters()
