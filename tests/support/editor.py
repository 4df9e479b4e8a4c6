"""An editor, as far as a language server sees it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from itertools import count
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Editor", "running"]

_CLASS = """\
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    {typed}
"""
_LINE = 4
_INDENT = 4


@contextlib.contextmanager
def running(server: str, folder: Path) -> Iterator[Editor]:
    """Run a language server that sees a folder, and end it.

    Args:
        server: The program, which speaks over its standard streams.
        folder: The folder that the editor has open.
    """
    with subprocess.Popen(
        [server, "--stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Editor(process.stdin, process.stdout, folder)
        finally:
            process.kill()


class Editor:
    """Types into the body of a configuration class, and asks what could stand there."""

    def __init__(self, to_server: IO[bytes], from_server: IO[bytes], folder: Path) -> None:
        """Open a file that has a configuration class."""
        self._to_server = to_server
        self._from_server = from_server
        self._numbers = count(1)
        self._document = {"uri": (folder / "gunicorn.conf.py").as_uri(), "version": 0}
        formats = {"completionItem": {"documentationFormat": ["markdown"]}}
        self._ask(
            "initialize",
            processId=os.getpid(),
            rootUri=folder.as_uri(),
            workspaceFolders=[{"uri": folder.as_uri(), "name": folder.name}],
            capabilities={
                "textDocument": {"completion": formats},
                "workspace": {"configuration": True},
            },
        )
        self._send(method="initialized", params={})
        document = {**self._document, "languageId": "python", "text": ""}
        self._send(method="textDocument/didOpen", params={"textDocument": document})

    def complete(self, typed: str) -> list[str]:
        """Return the attributes that are offered when a name has been begun."""
        return sorted(item["label"] for item in self._items(typed))

    def describe(self, name: str) -> str:
        """Return what is shown beside an attribute that is offered."""
        item = next(item for item in self._items(name) if item["label"] == name)
        shown: str = self._ask("completionItem/resolve", **item)["documentation"]["value"]
        return shown

    def _items(self, typed: str) -> list[dict[str, Any]]:
        self._document["version"] = next(self._numbers)
        changes = [{"text": _CLASS.format(typed=typed)}]
        self._send(
            method="textDocument/didChange",
            params={"textDocument": self._document, "contentChanges": changes},
        )
        answer = self._ask(
            "textDocument/completion",
            textDocument={"uri": self._document["uri"]},
            position={"line": _LINE, "character": _INDENT + len(typed)},
        )
        return [item for item in answer["items"] if item["label"].startswith(typed)]

    def _ask(self, method: str, **parameters: Any) -> Any:
        """Return the server's answer; answers what it asks meanwhile."""
        number = next(self._numbers)
        self._send(id=number, method=method, params=parameters)
        while True:
            message = self._receive()
            if "method" not in message:
                if message.get("id") == number:
                    return message["result"]
            elif "id" in message:
                is_settings = message["method"] == "workspace/configuration"
                asked = message["params"]["items"] if is_settings else []
                # Of each section; that with the name "python" says which one the user has chosen.
                settings = [{"pythonPath": sys.executable} for _ in asked]
                self._send(id=message["id"], result=settings if is_settings else None)

    def _send(self, **message: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._to_server.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._to_server.flush()

    def _receive(self) -> dict[str, Any]:
        length = 0
        while line := self._from_server.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if not length:
            raise EOFError("the language server has ended")
        message: dict[str, Any] = json.loads(self._from_server.read(length))
        return message
