"""Jobs as server-sent events: described once per change, the same bytes for all listeners.

One task follows all jobs that have listeners, so listening costs the generating thread almost the same
however many listen, and `MAX_EVENTS_PER_SECOND` bounds it.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field

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


@dataclass
class Feed:
    """Events of one job."""

    job: JobRow
    num_listeners: int = 0
    message: bytes = b""
    """The latest event, as sent."""
    is_over: bool = False
    seen: Hashable = None
    """Key of the latest description; the same key gives the same description."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next message."""

    def publish(self, message: bytes, *, is_over: bool) -> None:
        """Wake all listeners."""
        self.message, self.is_over = message, is_over
        self.changed.set()
        self.changed = asyncio.Event()


class EventStream(StreamingResponse):
    """A feed as a response; calls `on_end` however it ends, even before it has begun."""

    def __init__(self, feed: Feed, on_end: Callable[[], None]):
        headers = {"x-accel-buffering": "no"}  # nginx would keep events until it has some kilobytes
        super().__init__(_messages(feed), media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the job has ended or the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


class Events:
    """Feeds of the jobs that have listeners. For the event loop's thread alone."""

    def __init__(self, service: Service):
        self._service = service
        self._feeds: dict[str, Feed] = {}
        self._newcomer = asyncio.Event()
        self._producer: asyncio.Task[None] | None = None

    @property
    def num_listeners(self) -> int:
        return sum(feed.num_listeners for feed in self._feeds.values())

    def listen(self, job: JobRow) -> EventStream:
        """Add a listener, or raise a `BusyError` if there are too many."""
        if self.num_listeners >= MAX_STREAMS:
            raise BusyError(f"{MAX_STREAMS} clients are listening to events already")
        feed = self._feeds.setdefault(job.id, Feed(job))
        feed.num_listeners += 1
        self._newcomer.set()
        if self._producer is None or self._producer.done():
            self._producer = asyncio.create_task(self._produce())
        return EventStream(feed, lambda: self._leave(feed))

    def _leave(self, feed: Feed) -> None:
        feed.num_listeners -= 1
        if not feed.num_listeners:
            self._feeds.pop(feed.job.id, None)

    async def _produce(self) -> None:
        while self._feeds:
            self._newcomer.clear()
            for feed in [feed for feed in self._feeds.values() if not feed.is_over]:
                await self._update(feed)
            pause = max(SECONDS_BETWEEN_EVENTS, self.num_listeners / MAX_EVENTS_PER_SECOND)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._newcomer.wait(), pause)

    async def _update(self, feed: Feed) -> None:
        service = self._service
        running = [each for each in list(service.worker.progress.values()) if each.row.job == feed.job.number]
        steps = tuple((each.row.number, each.step, each.preview_step) for each in running)
        seen = service.queue.database.version, steps, service.is_stopping
        if seen == feed.seen:
            return
        try:
            message, is_over = await asyncio.to_thread(self._describe, feed.job.id)
        except UnavailableError:
            return  # the next update may find it
        except Exception:
            logger.exception("job %s cannot be described", feed.job.id)
            message, is_over = b"", True
        feed.seen = seen
        if message != feed.message or is_over:
            feed.publish(message, is_over=is_over)

    def _describe(self, job_id: str) -> tuple[bytes, bool]:
        job = self._service.queue.job(job_id)
        if job is None:
            return b"", True
        data = json.dumps(self._service.describe(job))
        return f"event: job\ndata: {data}\n\n".encode(), job.state not in OPEN or self._service.is_stopping


async def _messages(feed: Feed) -> AsyncIterator[bytes]:
    """Yield a feed's messages; of those that come while the client is slow, only the last."""
    last = b""
    while True:
        if feed.message != last:
            last = feed.message
            yield last
            continue  # the feed may have moved on meanwhile
        if feed.is_over:
            return
        try:
            await asyncio.wait_for(feed.changed.wait(), SECONDS_BETWEEN_HEARTBEATS)
        except TimeoutError:
            yield b": still here\n\n"
