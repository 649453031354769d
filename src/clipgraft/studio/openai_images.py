"""Images for OpenAI's clients: one answer, or a stream of events."""

import asyncio
import base64
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from PIL import Image

from clipgraft.errors import NO_SPACE
from clipgraft.generation.contact_sheet import FAILURES
from clipgraft.generation.requests import ImageRequest
from clipgraft.studio.answers import NoImageError, answers, client_name, describe_error
from clipgraft.studio.database import UnavailableError
from clipgraft.studio.events import SECONDS_BETWEEN_HEARTBEATS, EventStream
from clipgraft.studio.image_files import encode
from clipgraft.studio.queue import ImageRow, JobRow
from clipgraft.studio.schemas import ImagesRequest
from clipgraft.studio.service import Service, StoppedError
from clipgraft.studio.worker import Progress, is_bug

SECONDS_BETWEEN_LOOKS = 0.1
"""For new previews, of a stream."""


def generation_routes(service: Service, public_url: str) -> APIRouter:
    """Make the route; image addresses begin with `public_url`, else the request's."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/images/generations", responses=answers("generations"))
    async def generate_images(body: ImagesRequest, request: Request) -> Any:
        """Generate images and wait for them; hanging up cancels.

        With `stream`, answers with server-sent events: `image_generation.partial_image`, at most
        `partial_images` of each image, and `image_generation.completed`.
        """
        model = body.model or service.catalog.default_model()
        defaults = service.catalog.model(model)[0].defaults
        requests = await asyncio.to_thread(body.requests, defaults, service.named)  # looks for files
        images = [(model, each) for each in requests]
        return await answer_images(service, public_url, request, body, images)

    return router


async def answer_images(
    service: Service,
    public_url: str,
    request: Request,
    body: ImagesRequest,
    images: Sequence[tuple[str, ImageRequest]],
) -> Any:
    """Generate images and answer as OpenAI does; hanging up cancels.

    Args:
        service: Generates them.
        public_url: Begins the images' addresses; empty = the request's own.
        request: Of the client.
        body: How to answer.
        images: Models and requests.
    """
    name = client_name(request, body.safety_identifier or body.user)
    job_id = service.submit(name, "stream" if body.stream and body.partial_images else "call", images)
    if body.stream:
        return _streamed(service, job_id, body)
    job = await _outcome(service, job_id, request)
    if job is None:
        return Response(status_code=499)
    address = public_url or str(request.base_url).removesuffix("/")
    return _answer(service, job, body, f"{address}/v1/images/")


def _answer(service: Service, job: JobRow, body: ImagesRequest, address: str) -> dict[str, Any]:
    """Return OpenAI's answer, or raise what its client is told.

    Args:
        address: Where images are found by id, with a trailing slash.
    """
    data = []
    for row in _finished_rows(service, job):
        if body.response_format == "url":
            query = "" if body.output_compression is None else f"?quality={body.file_quality}"
            image = {"url": f"{address}{row.id}.{body.file_format}{query}"}
        else:
            image = {"b64_json": _finished_image(service, row, body)}
        data.append({"seed": row.settings["seed"], "id": row.id, "notes": row.notes, **image})
    return {
        "created": int(time.time()),
        "output_format": body.file_format,
        "notes": body.notes(),
        "data": data,
    }


def _streamed(service: Service, job_id: str, body: ImagesRequest) -> EventStream:
    """Answer with events of a job's images; hanging up cancels it."""
    future = service.wait(job_id)

    def cancel() -> None:
        if not future.done():
            service.cancel(job_id)

    return EventStream(_events(service, job_id, asyncio.wrap_future(future), body), cancel)


async def _events(
    service: Service, job_id: str, ended: "asyncio.Future[JobRow]", body: ImagesRequest
) -> AsyncIterator[bytes]:
    sent: Counter[str] = Counter()
    last = time.monotonic()
    try:
        while not (await asyncio.wait({ended}, timeout=SECONDS_BETWEEN_LOOKS))[0]:
            for progress in await asyncio.to_thread(_due_previews, service, job_id, sent, body):
                partial = await asyncio.to_thread(_partial_image, progress, sent, body)
                yield _event(f"{body.event}.partial_image", partial)
                last = time.monotonic()
            if time.monotonic() - last > SECONDS_BETWEEN_HEARTBEATS:
                yield b": still here\n\n"
                last = time.monotonic()
        for row in await asyncio.to_thread(_finished_rows, service, ended.result()):
            image = await asyncio.to_thread(_finished_image, service, row, body)
            values = {"b64_json": image, "notes": [*body.notes(), *row.notes]}
            yield _event(f"{body.event}.completed", _values(row, body) | values)
    except NoImageError as error:
        yield _event("error", describe_error(error.status, error.code, str(error), error.param))
    except StoppedError as error:
        yield _event("error", describe_error(503, error.code, str(error)))
    except UnavailableError as error:
        yield _event("error", describe_error(503, "unavailable", str(error)))


def _due_previews(service: Service, job_id: str, sent: Counter[str], body: ImagesRequest) -> list[Progress]:
    """Return progress of images with a preview that has not been sent.

    The previews of an image are spread evenly over its steps.
    """
    count = body.partial_images or 0
    job = service.queue.job(job_id)
    running = [each for each in list(service.worker.progress.values()) if job and each.row.job == job.number]
    parts = count + 1
    return [
        each
        for each in running
        if sent[each.row.id] < count and each.preview_step * parts >= (sent[each.row.id] + 1) * each.row.steps
    ]


def _partial_image(progress: Progress, sent: Counter[str], body: ImagesRequest) -> dict[str, Any]:
    row = progress.row
    with Image.open(io.BytesIO(progress.preview), formats=["JPEG"]) as preview:
        content = encode(preview, body.file_format.upper(), quality=body.file_quality)
    values = {"b64_json": base64.b64encode(content).decode(), "partial_image_index": sent[row.id]}
    sent[row.id] += 1
    return _values(row, body) | values


def _values(row: ImageRow, body: ImagesRequest) -> dict[str, Any]:
    width, height = row.settings["width"], row.settings["height"]
    return {
        "created_at": int(time.time()),
        "output_format": body.file_format,
        "size": f"{width}x{height}" if width and height else "auto",
        "background": "opaque",
        "quality": "auto",
        "seed": row.settings["seed"],
        "id": row.id,
    }


def _event(kind: str, values: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()


def _finished_rows(service: Service, job: JobRow) -> list[ImageRow]:
    """Return a job's images, or raise what its client is told."""
    if job.state == "interrupted":
        raise StoppedError(job.error)
    rows = service.queue.images_of(job.number)
    failed = next((row.state for row in rows if row.state != "ok"), None)
    if failed == "cancelled":
        raise NoImageError(409, "cancelled", "the job was cancelled while it was waited for")
    if failed == "blocked":
        raise NoImageError(400, "content_policy_violation", FAILURES[failed], "prompt")
    if failed and job.error.startswith(NO_SPACE):
        raise NoImageError(503, "no_space", job.error)
    if failed == "failed" and job.error and not is_bug(job.error):
        raise NoImageError(409, "model_unusable", job.error)
    if failed:
        raise NoImageError(500, failed, FAILURES.get(failed, job.error or failed))
    return rows


def _finished_image(service: Service, row: ImageRow, body: ImagesRequest) -> str:
    content = service.files.read(row.id, body.file_format, quality=body.file_quality)
    return base64.b64encode(content).decode()


async def _outcome(service: Service, job_id: str, request: Request) -> JobRow | None:
    """Wait for a job; hanging up cancels it and gives None."""
    ended: asyncio.Future[JobRow] = asyncio.wrap_future(service.wait(job_id))
    gone: asyncio.Future[Any] = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
    finally:
        gone.cancel()
        if not ended.done():
            ended.cancel()
            service.cancel(job_id)
    return None


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
