"""A model hub of one's own on 127.0.0.1: the few routes that huggingface_hub asks, with real files behind."""

import hashlib
import json
import re
import shutil
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants


@dataclass
class Hub:
    """What the server serves, and what it was asked."""

    models: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Folder by model and commit."""
    altered: set[str] = field(default_factory=set)
    """Files whose content differs from what is listed."""
    cut: set[str] = field(default_factory=set)
    """Files whose first answer ends in the middle."""
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    """Authorizations that were sent along."""
    store: Path | None = None
    """Gets a folder for each commit that is pushed."""
    private: dict[str, bool] = field(default_factory=dict)
    """Visibility of models; those not named are public."""
    writers: set[str] = field(default_factory=set)
    """Authorizations that may write."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Contents of large files that have arrived, by sum."""
    lost: set[str] = field(default_factory=set)
    """Sums of large files that never arrive, as the connection is cut."""
    endpoint: str = ""

    def sent(self, name: str) -> int:
        """How many times a file's content was asked for."""
        return sum(request.startswith("GET") and request.endswith(f"/{name}") for request in self.requests)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub in a thread."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask_only(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Have the hub's library in this process ask that hub, with a cache of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def file_entry(path: Path) -> dict:
    """Size and sums as the hub lists them: large files are stored by sha256, small ones by git's sum."""
    content = path.read_bytes()
    git_sum = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict = {"size": len(content), "oid": git_sum}
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.headers.get("Authorization") not in self.hub.writers:
            self._refuse("Forbidden", 403)
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            entries = [{"path": name, "uploadMode": mode} for name, mode in modes.items()]
            self._send_json({"files": [entry | {"shouldIgnore": False} for entry in entries]})
        elif re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._send_json({"objects": [self._wanted(entry) for entry in json.loads(content)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit_files(match[1], [json.loads(line) for line in content.splitlines()])
        else:
            self._refuse("EntryNotFound")

    def do_PUT(self) -> None:
        name = self.path.rpartition("/")[2]
        self.hub.requests.append(f"{self.command} {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if name in self.hub.lost:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        assert hashlib.sha256(content).hexdigest() == name
        self.hub.blobs[name] = content
        self._send_json({})

    def _create(self, wanted: dict) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.models:
            self._send_json({"url": f"{self.hub.endpoint}/{name}"}, 409)
            return
        assert self.hub.store is not None
        empty = self.hub.store / "0"
        empty.mkdir(parents=True)
        self.hub.models[name] = {"0" * 40: empty}
        self.hub.private[name] = wanted.get("visibility") == "private"
        self._send_json({"url": f"{self.hub.endpoint}/{name}"})

    def _wanted(self, entry: dict) -> dict:
        upload = {"href": f"{self.hub.endpoint}/upload/{entry['oid']}"}
        return entry if entry["oid"] in self.hub.blobs else {**entry, "actions": {"upload": upload}}

    def _commit_files(self, name: str, lines: list[dict]) -> None:
        assert self.hub.store is not None
        commits = self.hub.models[name]
        number = f"{len(commits):x}" * 40
        folder = shutil.copytree(next(iter(commits.values())), self.hub.store / number[:4])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            is_large = line["key"] == "lfsFile"
            path.write_bytes(self.hub.blobs[value["oid"]] if is_large else b64decode(value["content"]))
        self.hub.models[name] = {number: folder, **commits}
        self._send_json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{number}", "commitOid": number})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_content: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            folder = self._folder(match[1], match[3] or "main")
            if folder:
                self._send_json(self._listing(match[1], folder, as_tree=match[2] == "tree"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            folder = self._folder(match[1], match[2])
            if folder:
                self._send_file(folder, match[3], with_content)
        else:
            self._refuse("EntryNotFound")

    def _folder(self, name: str, revision: str) -> Path | None:
        commits = self.hub.models.get(name)
        if commits is None:
            return self._refuse("RepoNotFound")
        commit = next(iter(commits)) if revision == "main" else revision
        return commits[commit] if commit in commits else self._refuse("RevisionNotFound")

    def _listing(self, name: str, folder: Path, *, as_tree: bool) -> object:
        files = {path.relative_to(folder).as_posix(): file_entry(path) for path in _files(folder)}
        if as_tree:
            return [{"type": "file", "path": file, **entry} for file, entry in files.items()]
        siblings = []
        for file, entry in files.items():
            lfs = entry.get("lfs")
            listed = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134} if lfs else None
            siblings.append(
                {"rfilename": file, "size": entry["size"], "blobId": entry["oid"]}
                | ({"lfs": listed} if listed else {})
            )
        return {
            "id": name,
            "modelId": name,
            "sha": self._commit(folder),
            "private": self.hub.private.get(name, False),
            "siblings": siblings,
        }

    def _commit(self, folder: Path) -> str:
        return next(
            commit
            for commits in self.hub.models.values()
            for commit, path in commits.items()
            if path == folder
        )

    def _send_file(self, folder: Path, name: str, with_content: bool) -> None:
        if not (folder / name).is_file():
            self._refuse("EntryNotFound")
            return
        entry, content = file_entry(folder / name), (folder / name).read_bytes()
        if name in self.hub.altered:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        total, content = len(content), content[start:]
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", self._commit(folder))
        self.send_header("ETag", f'"{entry.get("lfs", entry)["oid"]}"')
        self.send_header("X-Linked-Size", str(total))
        self.send_header("Content-Length", str(len(content)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if with_content and name in self.hub.cut:
            self.hub.cut.remove(name)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif with_content:
            self.wfile.write(content)

    def _send_json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, code: str, status: int = 404) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
