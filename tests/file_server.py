"""A file server on 127.0.0.1 that can end transfers early."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Files:
    """What is served, and what was asked for."""

    folder: Path
    cut: dict[str, int] = field(default_factory=dict)
    """How many transfers of a file end in the middle."""
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def sent(self, name: str) -> int:
        """How many times a file's content was asked for."""
        return self.requests.count(f"GET /{name}")


@contextmanager
def serve(folder: Path) -> Iterator[Files]:
    """Serve a folder in a thread."""
    files = Files(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": files}))
    files.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    files: Files
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_content: bool) -> None:
        self.files.requests.append(f"{self.command} {self.path}")
        name = self.path.removeprefix("/").partition("?")[0]
        path = self.files.folder / name
        content = path.read_bytes() if path.is_file() else b""
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(len(content)))
        if path.is_file():
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if with_content and self.files.cut.get(name, 0):
            self.files.cut[name] -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        if with_content:
            self.wfile.write(content)
