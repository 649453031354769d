"""A client's connection: a time limit on a request's headers, which come before any of our code is asked."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""In which a request's headers have to arrive whole; a connection that asks nothing is closed as well. What
comes over a slow line takes a second: a drip that holds one of the few connections is the only one closed."""


class TimedConnection(H11Protocol):
    """Closes itself where a request's headers do not arrive in time.

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
        """Begin to count, unless it is being counted: each further byte would else buy more time."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self.transport.close)

    def _end_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
