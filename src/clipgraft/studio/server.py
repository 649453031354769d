"""Starting and stopping the studio: address, token, log, signals, slow connections."""

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipgraft.console import print_line
from clipgraft.device import quiet_libraries
from clipgraft.errors import UserError
from clipgraft.models.vae import find_vae
from clipgraft.runs.folder import hold_folder
from clipgraft.runs.folder_kinds import is_result, wrong_kind
from clipgraft.sampling_params import DEFAULT_INFERENCE, InferenceConfig
from clipgraft.studio.api import build_app
from clipgraft.studio.security import TOKEN_VARIABLE, Access, make_access
from clipgraft.studio.service import Service

SECRET_VARIABLES = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)
MAX_CONNECTIONS = 256
HEADER_SECONDS = 10.0
"""Time for a request's headers; a slow line takes a second, and a drip would hold a connection."""


def serve(
    runs_dir: Path,
    home: Path,
    *,
    host: str,
    port: int,
    with_token: bool,
    device: str,
    public_url: str = "",
    data_dir: Path | None = None,
    models_dir: Path | None = None,
    inference: InferenceConfig = DEFAULT_INFERENCE,
) -> None:
    """Run the studio until a signal ends it.

    Args:
        runs_dir: Runs to generate with and to look at.
        home: Folder of queue and images; one process at a time.
        host: Address to listen on; any but loopback needs a token.
        port: 0 = a free one.
        public_url: Address of a proxy with TLS, as https://studio.example.org; empty = no proxy.
        data_dir: Folder of data sets that the page may train on; None = nothing is trained.
        models_dir: Folder with `loras/`, `controlnets/`, `ip_adapters/` and `embeddings/`; None = none.
        inference: As for `Service`.

    Raises:
        MissingFileError: If the VAE is not there.
        UserError: If `runs_dir` is something else, others can reach the address without a token, another
            studio has the home, or the address is taken.
    """
    quiet_libraries()
    if runs_dir.is_file() or is_result(runs_dir):
        advice = f"the folder it lies in, such as {runs_dir.parent}"
        raise UserError(wrong_kind(runs_dir, "a folder of runs", advice=advice))
    if inference.vae:
        find_vae(inference.vae)  # which its first image would look for
    access = make_access(host, with_token, public_url)
    with hold_folder(home), _bound(host, port) as listener:
        service = Service(
            runs_dir,
            home,
            device=device,
            inference=inference,
            data_dir=data_dir,
            models_dir=models_dir,
        )
        redact_secrets(access.token)
        server = Server(
            service, access, lambda: _announce(host, listener.getsockname()[1], access, with_token)
        )
        server.run(sockets=[listener])


class TimedConnection(H11Protocol):
    """A connection with a time limit for a request's headers.

    The guard bounds the body's time; between two requests uvicorn's own keep-alive limit holds.
    """

    header_seconds = HEADER_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_headers()
        else:
            self._end_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        if self._deadline is None:  # else each further byte would buy more time
            self._deadline = self.loop.call_later(self.header_seconds, self.transport.close)

    def _end_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """The HTTP server; stops the service first, which answers waiting clients."""

    def __init__(self, service: Service, access: Access, on_listening: Callable[[], None]):
        config = uvicorn.Config(
            build_app(service, access),
            http=TimedConnection,
            log_config=None,  # its own handler would write what redact_secrets removes
            log_level="warning",
            access_log=False,
            server_header=False,
            # Client and scheme as the proxy says; trusted from FORWARDED_ALLOW_IPS, by default 127.0.0.1.
            proxy_headers=bool(access.public_url),
            limit_concurrency=MAX_CONNECTIONS,
            lifespan="on",
            timeout_graceful_shutdown=None,
        )
        super().__init__(config)
        self._service, self._on_listening = service, on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # asked twice: exit at once, as if killed; the queue survives that
        # uvicorn's own handler raises the signal again at the end, which would keep the folder's lock.
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Not in the signal's handler, which may have interrupted the holder of one of the service's locks.
        await asyncio.to_thread(self._service.begin_to_stop)
        await super().shutdown(sockets)


def redact_secrets(token: str) -> None:
    """Remove the token and the environment's secrets from all logs."""
    values = (v for name, v in os.environ.items() if SECRET_VARIABLES.search(name) and len(v) >= 8)
    secret_values = [value for value in (token, *values) if value]

    def redact(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        for value in secret_values:
            text = text.replace(value, "[secret]")
            record.exc_text = record.exc_text and record.exc_text.replace(value, "[secret]")
        record.msg, record.args = text, ()
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(redact)


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror}; name another with --port"
        ) from error
    return listener


def _announce(host: str, port: int, access: Access, with_token: bool) -> None:
    name = f"[{host}]" if ":" in host else host
    own = os.environ.get(TOKEN_VARIABLE)
    login = f"?token={access.token}" if with_token and not own else ""
    lines = [f"studio: http://{name}:{port}/{login}"]
    if access.public_url:
        lines.append(f"behind the proxy: {access.public_url}/{login}")
    if with_token:
        note = f"the token is {TOKEN_VARIABLE}'s" if own else "the token is shown this once"
        lines.append(f"{note}; programs send it as Authorization: Bearer TOKEN")
    lines.append("Ctrl-C stops it; waiting jobs go on after the next start")
    print_line("\n".join(lines))
