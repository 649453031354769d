"""Routes that OpenAI's clients know: images, embeddings, models."""

import asyncio
import base64
import time
from concurrent.futures import Future
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse

from clipgraft.errors import DataError
from clipgraft.studio.image_files import count_pixels, read_base64
from clipgraft.studio.queue import BusyError, JobRow
from clipgraft.studio.responses import NotFoundError, answers, image_error
from clipgraft.studio.schemas import EmbeddingsRequest, ImageInput, ImagesRequest, Limits
from clipgraft.studio.service import Service, StoppedError

IMAGES_EXAMPLE = {
    "created": 1767225600,
    "output_format": "png",
    "data": [{"b64_json": "iVBORw0KGgo...", "seed": 0, "id": "1f0c9a52e3b84d17", "notes": []}],
}
EMBEDDINGS_EXAMPLE = {
    "object": "list",
    "model": "flatland",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.12, -0.03, 0.31]}],
    "usage": {"prompt_tokens": 9, "total_tokens": 9},
}
MODEL_EXAMPLE = {
    "id": "demo/after",
    "object": "model",
    "created": 0,
    "owned_by": "clipgraft",
    "does": ["images", "embeddings"],
}
MODELS_EXAMPLE = {
    "object": "list",
    "default": "demo/after",
    "data": [MODEL_EXAMPLE],
    "limits": {"max_steps": 150},
}


def client_name(request: Request, name: str | None) -> str:
    """Who asks: the address, and the name that it gives itself."""
    address = request.client.host if request.client else ""
    return f"{address} {name or ''}"


def openai_routes(service: Service, public_url: str) -> APIRouter:
    """Make the routes; addresses that they answer begin with `public_url`, or with what was asked."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.get("/models", responses=answers(MODELS_EXAMPLE))
    def list_models() -> Any:
        """What images can be drawn with (`does: images`), and what embeds (`does: embeddings`)."""
        limits = service.limits.model_dump(exclude={"memory_bytes"})
        rows = list(_model_rows(service).values())
        return {"object": "list", "data": rows, "default": service.default_model(), "limits": limits}

    @router.get("/models/{model:path}", responses=answers(MODEL_EXAMPLE))
    def show_model(model: Annotated[str, PathParameter(max_length=200, examples=["demo/after"])]) -> Any:
        """What a model does."""
        rows = _model_rows(service)
        if model not in rows:
            raise NotFoundError("model", model, list(rows))
        return rows[model]

    @router.post("/images/generations", responses=answers(IMAGES_EXAMPLE))
    async def generate_images(body: ImagesRequest, request: Request) -> Any:
        """Draw images and wait for them. Who hangs up is not drawn for any further."""
        model = service.checked_model(body.model or service.default_model())
        images = [(model, job) for job in body.jobs(service.defaults(model))]
        job_id = service.submit(client_name(request, body.user), "call", images)
        job = await _outcome(service, job_id, request)
        if job is None:
            return Response(status_code=499)  # nobody reads it
        if job.state == "interrupted":
            raise StoppedError(job.error)
        address = public_url or str(request.base_url).removesuffix("/")
        return _drawn(service, job, body, f"{address}/v1/images/")

    @router.post("/embeddings", responses=answers(EMBEDDINGS_EXAMPLE))
    def embed(body: EmbeddingsRequest) -> Any:
        """Embed texts and images in the joint space of a CLIP: unit norm, so a dot product is a cosine."""
        names = service.embedding.names()
        model = body.model or next((name for name in names if name.endswith("/after")), names[0])
        if model not in names:
            raise NotFoundError("model", model, names)
        items = [_text_or_file(item, service.limits) for item in body.items()]
        _check_pixels([item for item in items if isinstance(item, bytes)], service.limits)
        if not service.slots.acquire(blocking=False):
            raise BusyError("too many embeddings are being made; try again")
        try:
            embeds, num_tokens = service.embedding.embed(model, items)
        finally:
            service.slots.release()
        rows = [
            {"object": "embedding", "index": index, "embedding": _encoded(row.numpy(), body.encoding_format)}
            for index, row in enumerate(embeds)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return JSONResponse({"object": "list", "model": model, "data": rows, "usage": usage})

    return router


def _model_rows(service: Service) -> dict[str, dict[str, Any]]:
    """By name, what draws and then what only embeds."""
    drawn_with = service.models()
    does: dict[str, list[str]] = {name: ["images"] for name in drawn_with}
    for name in service.embedding.names():
        does.setdefault(name, []).append("embeddings")
    return {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "clipgraft", "does": what}
        | (asdict(drawn_with[name][0].defaults) if name in drawn_with else {})
        for name, what in does.items()
    }


def _drawn(service: Service, job: JobRow, body: ImagesRequest, address: str) -> Any:
    """The answer when a call's job has ended; `address` is where its images are found."""
    rows = service.queue.images_of(job.number)
    drawn = [row for row in rows if row.state == "ok"]
    if len(drawn) < len(rows):
        return image_error(next(row.state for row in rows if row.state != "ok"), job.error)
    image_format = body.output_format or "png"
    data = [{"seed": row.settings["seed"], "id": row.id, "notes": row.notes} for row in drawn]
    for row, values in zip(drawn, data, strict=True):
        if body.response_format == "url":
            values["url"] = f"{address}{row.id}.{image_format}"
        else:
            values["b64_json"] = base64.b64encode(service.files.read(row.id, image_format)).decode()
    return {"created": int(time.time()), "output_format": image_format, "data": data}


def _text_or_file(item: str | ImageInput, limits: Limits) -> str | bytes:
    if isinstance(item, ImageInput):
        return read_base64(item.image)
    if item.startswith("data:image/"):
        return read_base64(item)
    if len(item) > limits.max_prompt_characters:
        raise DataError(
            f"a text has {len(item)} characters; at most {limits.max_prompt_characters} are taken"
        )
    return item


def _check_pixels(files: list[bytes], limits: Limits) -> None:
    """Bound what decoding takes, before anything is decoded.

    Raises:
        DataError: If an image, or all of them together, are too large.
    """
    total = sum(count_pixels(content, limits.max_upload_pixels) for content in files)
    if total > limits.max_request_pixels:
        raise DataError(
            f"the request's {len(files)} images have {total:,} pixels together; at most "
            f"{limits.max_request_pixels:,} are taken: send fewer, or smaller ones"
        )


def _encoded(row: np.ndarray, encoding_format: str | None) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return row.tolist()


async def _outcome(service: Service, job_id: str, request: Request) -> JobRow | None:
    """Wait for a job; cancel it, and return None, where the client hangs up."""
    future: Future[JobRow] = service.wait(job_id)
    ended: asyncio.Future[Any] = asyncio.wrap_future(future)
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
