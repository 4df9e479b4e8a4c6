"""Pods without a cluster: what a manifest says, run in namespaces of the kernel.

A :class:`Pod` is made from a pod's specification as it stands in a Deployment. It has a network of
its own and its ``emptyDir`` volumes; each container has its own pid namespace, in which its command
is PID 1, and its own view of the file system: the interpreter and the application, read-only as the
rest of the root, and the volumes that it mounts. It runs with the uid, gid and fsGroup of the
specification and without any capability. What is mounted goes with the namespaces, and those with
their processes.

Needs root and util-linux; :func:`sandbox_problem` says what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.manifests import parse_quantity
from tests.support.process import DEADLINE_SECONDS, HOST, Interpreter, Response, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["APPLICATION", "Container", "Pod", "sandbox_problem"]

APPLICATION = "/app"
"""Where the application's files are, the working directory of every container."""

_TOOLS = ("chroot", "env", "mkdir", "mount", "nsenter", "setpriv", "sh", "unshare")
_NAMESPACES = ("--mount", "--net", "--ipc", "--uts")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64")
_MOST_LOG = 6000

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def sandbox_problem() -> str | None:
    """Return what keeps pods from running here, or ``None``."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces and to become another user"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}, of util-linux and coreutils"
    done = subprocess.run(
        [
            *("unshare", *_NAMESPACES, "--pid", "--fork", "--propagation", "private"),
            *("mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if done.returncode:
        return f"needs the right to make namespaces and to mount: {done.stderr.strip()}"
    return None


class Pod:
    """A network, volumes, and the containers that share them; a context manager.

    Leaving the context ends all containers. If the test has failed, their logs are printed.

    Attributes:
        spec: The pod's specification.
        containers: All containers that were started, in that order.
    """

    def __init__(
        self, interpreter: Interpreter, spec: Mapping[str, Any], files: Mapping[str, str]
    ) -> None:
        """Describe a pod; entering the context makes it, without any container.

        Args:
            interpreter: What runs the application; the image has it and its packages.
            spec: ``spec.template.spec`` of a Deployment.
            files: The application's files, by name.
        """
        self.spec = spec
        self.containers: list[Container] = []
        self._interpreter = interpreter
        self._root = Path(tempfile.mkdtemp(prefix="obskit-pod-"))
        self._files = files
        self._pause: subprocess.Popen[str] | None = None
        self._network: ThreadPoolExecutor | None = None

    def __enter__(self) -> Pod:
        """Make network, volumes and image."""
        try:
            self._root.chmod(0o755)
            self._make_image()
            self._make_namespaces()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all containers; volumes and network go with them."""
        for container in self.containers:
            container.end()
        if self._network is not None:
            self._network.shutdown()
        if self._pause is not None:
            self._pause.communicate(timeout=DEADLINE_SECONDS)
        if kind is not None:
            for container in self.containers:
                print(f"--- log of {container.name}\n{container.log()[-_MOST_LOG:]}---")
        shutil.rmtree(self._root, ignore_errors=True)

    def start(
        self,
        name: str,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Container:
        """Start a container of the specification.

        Args:
            name: Its name. It may have been started before; then this is its restart.
            command: What to run instead of its command.
            environment: More variables.
        """
        log_path = self._root / f"{name}-{len(self.containers)}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                self._command(name, command, environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        container = Container(self, name, process, log_path)
        self.containers.append(container)
        return container

    def probe(self, name: str, kind: str) -> bool:
        """Ask what a probe of a container asks, and return whether the kubelet would be content.

        Args:
            name: The container's name.
            kind: The probe: ``startupProbe``, ``readinessProbe`` or ``livenessProbe``.
        """
        spec = self._container_specs[name]
        probe = spec[kind]
        ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
        request = probe["httpGet"]
        try:
            response = self.get(
                ports[request["port"]], request["path"], timeout=probe["timeoutSeconds"]
            )
        except (OSError, http.client.HTTPException):
            return False
        return 200 <= response.status < 400

    def run(self, name: str, *command: str) -> str:
        """Run a command in a container like the one of that name, and return what it prints.

        Raises:
            AssertionError: It failed.
        """
        done = subprocess.run(
            self._command(name, command, {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def connect(self, port: int, *, timeout: float = 10.0) -> socket.socket:
        """Connect to a port of the pod's 127.0.0.1.

        Raises:
            OSError: Nobody listens.
        """
        assert self._network is not None
        # A socket belongs to the network of the thread that makes it; any other may use it.
        return self._network.submit(socket.create_connection, (HOST, port), timeout).result()

    def get(self, port: int, path: str, *, timeout: float = 10.0) -> Response:
        """Ask a server in the pod for a page.

        Raises:
            OSError: No connection, or it was cut.
            http.client.HTTPException: The answer was cut short.
        """
        connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
        try:
            connection.sock = self.connect(port, timeout=timeout)
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return Response(response.status, response.read().decode())
        finally:
            connection.close()

    def volume(self, name: str) -> Path:
        """Return a volume as it can be reached from outside, while the pod is there."""
        assert self._pause is not None
        inside = (self._root / "volumes" / name).relative_to("/")
        return Path(f"/proc/{self._pause.pid}/root") / inside

    def _make_image(self) -> None:
        """Make the root that containers see: empty, but for what is mounted there."""
        image = self._root / "image"
        for name in ("dev", "etc", "proc", APPLICATION[1:]):
            (image / name).mkdir(parents=True)
        uid, gid = self.spec["securityContext"]["runAsUser"], self._gid
        (image / "etc" / "passwd").write_text(f"app:x:{uid}:{gid}::/tmp:/usr/sbin/nologin\n")
        (image / "etc" / "group").write_text(f"app:x:{gid}:\n")
        (image / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        with contextlib.suppress(FileNotFoundError):
            shutil.copy("/etc/ld.so.cache", image / "etc")
        for name, text in self._files.items():
            (image / APPLICATION[1:] / name).write_text(text)
        for name in _SYSTEM:
            path = Path("/") / name
            if path.is_symlink():
                (image / name).symlink_to(path.readlink())
            elif path.is_dir():
                (image / name).mkdir()
        for path in self._read_only_paths:
            (image / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
        for container in self._container_specs.values():
            for mount in container.get("volumeMounts", []):
                (image / mount["mountPath"][1:]).mkdir(parents=True, exist_ok=True)

    def _make_namespaces(self) -> None:
        """Start the process that holds what the containers share, as long as our pipe is open."""
        commands = ["set -e"]
        for volume in self.spec["volumes"]:
            path = self._root / "volumes" / volume["name"]
            path.mkdir(parents=True)
            # As the kubelet does for a volume in memory.
            size = int(parse_quantity(volume["emptyDir"]["sizeLimit"]))
            group = self.spec["securityContext"]["fsGroup"]
            options = f"size={size},mode=2777,gid={group}"
            commands.append(shlex.join(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]))
        commands += ["echo ready", "exec cat"]
        self._pause = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--propagation", "private", "sh", "-c", "\n".join(commands)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._pause.stdout is not None
        assert self._pause.stdout.readline() == "ready\n"
        self._network = ThreadPoolExecutor(1, "pod", _enter_network, (self._pause.pid,))
        self._network.submit(_bring_up_loopback).result()

    @property
    def _gid(self) -> int:
        gid: int = self.spec["securityContext"]["runAsGroup"]
        return gid

    @property
    def _container_specs(self) -> dict[str, Any]:
        every = [*self.spec.get("initContainers", []), *self.spec["containers"]]
        return {container["name"]: container for container in every}

    @functools.cached_property
    def _read_only_paths(self) -> list[Path]:
        """What of this machine is in the image, at the same place, none within another."""
        command = (
            "import json, os, sys, obskit_gunicorn; "
            "print(json.dumps([sys.prefix, sys.base_prefix, "
            "os.path.dirname(obskit_gunicorn.__file__)]))"
        )
        done = subprocess.run(
            [self._interpreter.path, "-c", command],
            cwd="/",
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        system = [path for path in (Path("/") / name for name in _SYSTEM) if path.is_dir()]
        wanted = [*(p for p in system if not p.is_symlink()), *map(Path, json.loads(done.stdout))]
        return [path for path in dict.fromkeys(wanted) if not set(path.parents) & set(wanted)]

    def _command(
        self, name: str, command: Sequence[str] | None, environment: Mapping[str, str]
    ) -> list[str]:
        """Return the command line that runs a container."""
        assert self._pause is not None
        spec = self._container_specs[name]
        variables = {
            "PATH": f"{Path(self._interpreter.path).parent}:/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            **{key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ},
            **{entry["name"]: entry["value"] for entry in spec.get("env", [])},
            **environment,
        }
        security = self.spec["securityContext"]
        program = [
            *("chroot", str(self._root / "image"), "setpriv"),
            *(f"--reuid={security['runAsUser']}", f"--regid={self._gid}"),
            *(f"--groups={security['fsGroup']}", "--inh-caps=-all", "--bounding-set=-all"),
            *("--no-new-privs", "env", "-i", f"--chdir={APPLICATION}"),
            *(f"{key}={value}" for key, value in variables.items()),
            *(command if command is not None else spec["command"]),
        ]
        script = "\n".join([*self._mounts(spec), "exec " + shlex.join(program)])
        return [
            *("nsenter", f"--target={self._pause.pid}", *_NAMESPACES, "--"),
            *("unshare", "--mount", "--propagation", "private", "--pid", "--fork"),
            *("--kill-child=SIGKILL", "sh", "-c", script),
        ]

    def _mounts(self, spec: Mapping[str, Any]) -> list[str]:
        """Return the commands that make the file system of a container."""
        image = self._root / "image"
        commands = ["set -e", "cd /"]

        def mount(*arguments: str | Path) -> None:
            commands.append(shlex.join(["mount", *map(str, arguments)]))

        def make_read_only(path: Path) -> None:
            mount("-o", "remount,bind,ro", path)

        mount("--bind", image, image)
        mount("-t", "proc", "proc", image / "proc")
        mount("-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", image / "dev")
        for device in _DEVICES:
            commands.append(f": > {shlex.quote(str(image / 'dev' / device))}")
            mount("--bind", f"/dev/{device}", image / "dev" / device)
        for volume in spec.get("volumeMounts", []):
            inside = image / volume["mountPath"][1:]
            mount("--bind", self._root / "volumes" / volume["name"], inside)
            if volume.get("readOnly"):
                make_read_only(inside)
        # After the volumes: a checkout below /tmp would be hidden by the volume there.
        for path in self._read_only_paths:
            inside = image / path.relative_to("/")
            commands.append(shlex.join(["mkdir", "-p", str(inside)]))
            mount("--bind", path, inside)
            make_read_only(inside)
        if spec["securityContext"]["readOnlyRootFilesystem"]:
            make_read_only(image)
        return commands


class Container:
    """A container of a pod; made by :meth:`Pod.start`.

    Attributes:
        name: The name in the specification.
    """

    def __init__(
        self, pod: Pod, name: str, process: subprocess.Popen[bytes], log_path: Path
    ) -> None:
        """Wrap the process that waits for the container's PID 1."""
        self.name = name
        self._pod = pod
        self._process = process
        self._log_path = log_path
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The container's PID 1, as this process sees it."""
        if self._pid is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")

            def child() -> int:
                assert self._process.poll() is None, f"{self.name} has ended\n{self.log()}"
                return int(next(iter(children.read_text().split()), 0))

            self._pid = wait_until(child, f"{self.name} has a PID 1")
        return self._pid

    def pids(self) -> set[int]:
        """Return the container's processes, as this process sees them."""
        found = set()
        with contextlib.suppress(FileNotFoundError):
            namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
            for name in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                        found.add(int(name))
        return found

    def log(self) -> str:
        """Return what the container has printed."""
        return self._log_path.read_text(errors="replace")

    def get(self, port: int, path: str, *, timeout: float = 10.0) -> Response:
        """Ask a server of the pod for a page; see :meth:`Pod.get`."""
        return self._pod.get(port, path, timeout=timeout)

    def wait_until_answers(self, port: int, path: str) -> None:
        """Wait until a page is there; fail at once if the container has ended instead."""

        def answers() -> bool:
            assert self._process.poll() is None, f"{self.name} has ended\n{self.log()}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.get(port, path).status == 200
            return False

        wait_until(answers, f"{self.name} answers at :{port}{path}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to PID 1."""
        os.kill(self.pid, number)

    def exit_status(self) -> int:
        """Wait for the end of the container and return the status of its PID 1.

        It is not 0 either if a signal has ended it. When PID 1 has ended the kernel has killed and
        reaped all others of its namespace.
        """
        return self._process.wait(DEADLINE_SECONDS)

    def end(self) -> None:
        """End the container, whatever state it is in; nothing of it is left."""
        if self._process.poll() is None:
            with contextlib.suppress(AssertionError, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
        self._process.wait()


def _enter_network(pid: int) -> None:
    """Move the calling thread into the network of a process."""
    with open(f"/proc/{pid}/ns/net", "rb") as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
