"""Jobs as server-sent events, described once per change for all listeners.

Listening costs the generating thread almost the same however many listen; `MAX_EVENTS_PER_SECOND` bounds it.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from clipgraft.studio.database import UnavailableError
from clipgraft.studio.queue import OPEN, BusyError, JobRow
from clipgraft.studio.service import Service

logger = logging.getLogger(__name__)

MAX_STREAMS = 64
MAX_EVENTS_PER_SECOND = 64
"""Of all listeners together: each event passes through the server to a socket."""
SECONDS_BETWEEN_EVENTS = 0.2
SECONDS_BETWEEN_HEARTBEATS = 15.0
Message = tuple[bytes | None, bool]
"""An event, None if the job cannot be read now; and whether it is the last."""


class EventStream(StreamingResponse):
    """Events as a response; calls `on_end` however it ends."""

    def __init__(self, messages: AsyncIterator[bytes], on_end: Callable[[], None]):
        headers = {"x-accel-buffering": "no"}  # nginx would keep events until it has some kilobytes
        super().__init__(messages, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


class Events:
    """Events of a service's jobs. For the event loop's thread alone."""

    def __init__(self, service: Service):
        self._service = service
        self._listeners: Counter[str] = Counter()
        self._latest: dict[str, tuple[Hashable, asyncio.Future[Message]]] = {}
        """Job -> key of its state, and the description of that state."""

    def listen(self, job: JobRow) -> EventStream:
        """Add a listener, or raise a `BusyError` if there are too many."""
        if self._listeners.total() >= MAX_STREAMS:
            raise BusyError(f"{MAX_STREAMS} clients are listening to events already")
        self._listeners[job.id] += 1
        return EventStream(self._messages(job), lambda: self._leave(job.id))

    def _leave(self, job_id: str) -> None:
        self._listeners[job_id] -= 1
        if not self._listeners[job_id]:
            del self._listeners[job_id]
            self._latest.pop(job_id, None)

    async def _messages(self, job: JobRow) -> AsyncIterator[bytes]:
        last, sent = b"", time.monotonic()
        while True:
            message, is_over = await self._message(job)
            if message and message != last:
                last, sent = message, time.monotonic()
                yield message
            elif time.monotonic() - sent > SECONDS_BETWEEN_HEARTBEATS:
                sent = time.monotonic()
                yield b": still here\n\n"
            if is_over:
                return
            pause = self._listeners.total() / MAX_EVENTS_PER_SECOND
            await asyncio.sleep(max(SECONDS_BETWEEN_EVENTS, pause))

    async def _message(self, job: JobRow) -> Message:
        service = self._service
        running = [each for each in list(service.worker.progress.values()) if each.row.job == job.number]
        steps = tuple((each.row.number, each.step, each.preview_step) for each in running)
        key = service.queue.database.version, steps, service.is_stopping
        if job.id not in self._latest or self._latest[job.id][0] != key:
            described = asyncio.ensure_future(asyncio.to_thread(self._describe, job.id))
            self._latest[job.id] = key, described
        message = await asyncio.shield(self._latest[job.id][1])  # a lost listener cancels no other's
        if message[0] is None:
            self._latest.pop(job.id, None)
        return message

    def _describe(self, job_id: str) -> Message:
        try:
            job = self._service.queue.job(job_id)
            if job is None:
                return b"", True
            data = json.dumps(self._service.describe(job))
        except UnavailableError:
            return None, False
        except Exception:
            logger.exception("job %s cannot be described", job_id)
            return b"", True
        is_over = job.state not in OPEN or self._service.is_stopping
        return f"event: job\ndata: {data}\n\n".encode(), is_over
