"""Routes for OpenAI's clients; errors of all routes in OpenAI's shape."""

import asyncio
import base64
import json
import reprlib
import secrets
import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clipgraft.device import without_folders
from clipgraft.errors import (
    NO_SPACE,
    CheckpointError,
    DataError,
    MissingFileError,
    UserError,
    is_no_space,
    one_line,
)
from clipgraft.generation.contact_sheet import FAILURES
from clipgraft.generation.schedulers import SCHEDULERS
from clipgraft.studio.catalog import UnknownModelError
from clipgraft.studio.database import UnavailableError
from clipgraft.studio.image_files import count_pixels, read_base64
from clipgraft.studio.queue import BusyError, JobRow
from clipgraft.studio.schemas import AxisName, EmbeddingsRequest, ImageInput, ImagesRequest, Limits
from clipgraft.studio.security import error_body
from clipgraft.studio.service import Service, StoppedError

RETRY_SECONDS = 5
"""By then a restart, another program's lock, a full disk or a full queue may be over (guess)."""
DESCRIPTION = json.loads(Path(__file__).with_name("openapi.json").read_text(encoding="utf-8"))
"""Examples of answers, and errors by status, for the OpenAPI description."""


class NotFoundError(LookupError):
    """There is no such model, job, image or run."""

    def __init__(self, what: str, name: str):
        super().__init__(f"there is no {what} {name!r}")
        self.code = f"{what}_not_found"


def answers(name: str, status: int = 200, media_type: str = "application/json") -> dict[int | str, Any]:
    """Describe a route's answers: a named example, and errors' shape."""
    shape = {"application/json": {"schema": DESCRIPTION["error_schema"]}}
    errors = {code: {"description": text, "content": shape} for code, text in DESCRIPTION["errors"].items()}
    done = {"description": "Accepted." if status == 202 else "Done."}
    return errors | {status: done | {"content": {media_type: {"example": DESCRIPTION["examples"][name]}}}}


def handle_errors(app: FastAPI) -> None:
    """Answer every error in OpenAI's shape, without local paths."""

    def handle(kind: type[Exception], status: int, code: str = "", param: str | None = None) -> None:
        @app.exception_handler(kind)
        async def _(_request: Request, error: Any) -> JSONResponse:
            return _error(status, code or error.code, without_folders(one_line(error)), param)

    handle(NotFoundError, 404)
    handle(UnknownModelError, 404, "model_not_found", "model")
    handle(UserError, 422, "invalid_value")
    handle(MissingFileError, 404, "not_found")
    handle(CheckpointError, 409, "model_unusable", "model")
    handle(BusyError, 429, "rate_limit_exceeded")
    handle(StoppedError, 503, "stopping")
    handle(UnavailableError, 503, "unavailable")

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        message = f"{'.'.join(place) or 'body'}: {first['msg']}"
        if place and first["type"] not in ("missing", "json_invalid"):  # whose input is the whole body
            message += f"; got {reprlib.repr(first['input'])}"
        return _error(422, "invalid_value", message, place[0] if place else None)

    @app.exception_handler(HTTPException)
    async def _(_request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return _error(error.status_code, code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def _(_request: Request, error: Exception) -> JSONResponse:
        if is_no_space(error):
            return _error(503, "no_space", f"{NO_SPACE}; free some")
        # The server logs the traceback, and with it this note.
        number = secrets.token_hex(8)
        error.add_note(f"told to the client as error {number}")
        message = f"that went wrong here; the studio's log says how, see error {number}"
        return _error(500, "internal_error", message)


def client_name(request: Request, name: str | None) -> str:
    """Return a client's address and the name that it gives itself."""
    address = request.client.host if request.client else ""
    return f"{address} {name or ''}"


def openai_routes(service: Service, public_url: str) -> APIRouter:
    """Make the routes; image addresses begin with `public_url`, else the request's."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.get("/models", responses=answers("models"))
    def list_models() -> Any:
        """What generates images (`does: images`) and what embeds (`does: embeddings`), with defaults."""
        return {
            "object": "list",
            "data": list(_model_rows(service).values()),
            "default": service.catalog.default_model(),
            "limits": service.limits.model_dump(exclude={"memory_bytes"}),
            "schedulers": list(SCHEDULERS),
            "axes": list(get_args(AxisName)),
        }

    @router.get("/models/{model:path}", responses=answers("model"))
    def show_model(model: Annotated[str, PathParameter(max_length=200, examples=["demo/after"])]) -> Any:
        """What a model does."""
        rows = _model_rows(service)
        if model not in rows:
            raise UnknownModelError(model, rows)
        return rows[model]

    @router.post("/images/generations", responses=answers("generations"))
    async def generate_images(body: ImagesRequest, request: Request) -> Any:
        """Generate images and wait for them; hanging up cancels."""
        model = body.model or service.catalog.default_model()
        defaults = service.catalog.model(model)[0].defaults
        images = [(model, each) for each in body.requests(defaults)]
        job_id = service.submit(client_name(request, body.user), "call", images)
        job = await _outcome(service, job_id, request)
        if job is None:
            return Response(status_code=499)
        if job.state == "interrupted":
            raise StoppedError(job.error)
        address = public_url or str(request.base_url).removesuffix("/")
        return _generated(service, job, body, f"{address}/v1/images/")

    @router.post("/embeddings", responses=answers("embeddings"))
    def embed(body: EmbeddingsRequest) -> Any:
        """Embed texts and images in a CLIP's joint space, with unit norm."""
        names = list(service.catalog.clips())
        model = body.model or next((name for name in names if name.endswith("/after")), names[0])
        if model not in names:
            raise UnknownModelError(model, names)
        items = [_text_or_file(item, service.limits) for item in body.items()]
        _check_pixels([item for item in items if isinstance(item, bytes)], service.limits)
        if not service.slots.acquire(blocking=False):
            raise BusyError("too many embeddings are being made; try again")
        try:
            embeds, num_tokens = service.embedder.embed(model, items)
        finally:
            service.slots.release()
        encoded = [_encoded(row.numpy(), body.encoding_format) for row in embeds]
        rows = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(encoded)]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return JSONResponse({"object": "list", "model": model, "data": rows, "usage": usage})

    return router


def _model_rows(service: Service) -> dict[str, dict[str, Any]]:
    """Models by name: first those that generate, then those that only embed."""
    models = service.catalog.models()
    does: dict[str, list[str]] = {name: ["images"] for name in models}
    for name in service.catalog.clips():
        does.setdefault(name, []).append("embeddings")
    return {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "clipgraft", "does": what}
        | (asdict(models[name][0].defaults) if name in models else {})
        for name, what in does.items()
    }


def _generated(service: Service, job: JobRow, body: ImagesRequest, address: str) -> Any:
    rows = service.queue.images_of(job.number)
    failed = next((row.state for row in rows if row.state != "ok"), None)
    if failed:
        return _image_error(failed, job.error)
    image_format = body.output_format or "png"
    data = []
    for row in rows:
        values = {"seed": row.settings["seed"], "id": row.id, "notes": row.notes}
        if body.response_format == "url":
            values["url"] = f"{address}{row.id}.{image_format}"
        else:
            values["b64_json"] = base64.b64encode(service.files.read(row.id, image_format)).decode()
        data.append(values)
    return {"created": int(time.time()), "output_format": image_format, "data": data}


def _image_error(status: str, error: str) -> JSONResponse:
    if status == "cancelled":
        return _error(409, "cancelled", "the job was cancelled while it was waited for")
    if status == "blocked":
        return _error(400, "content_policy_violation", FAILURES[status], "prompt")
    if error.startswith(NO_SPACE):
        return _error(503, "no_space", error)
    return _error(500, status, FAILURES.get(status, error or status))


def _error(
    status: int, code: str, message: str, param: str | None = None, headers: Any = None
) -> JSONResponse:
    kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    if status in (429, 503):
        headers = {"Retry-After": str(RETRY_SECONDS)}
    body = error_body(code, message, kinds.get(status, "invalid_request_error"), param)
    return JSONResponse(body, status_code=status, headers=headers)


def _text_or_file(item: str | ImageInput, limits: Limits) -> str | bytes:
    if isinstance(item, ImageInput):
        return read_base64(item.image)
    if item.startswith("data:image/"):
        return read_base64(item)
    if len(item) > limits.max_prompt_characters:
        most = limits.max_prompt_characters
        raise DataError(f"a text has {len(item)} characters; at most {most} are taken")
    return item


def _check_pixels(files: list[bytes], limits: Limits) -> None:
    """Refuse images too large, alone or together, before decoding any."""
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
    """Wait for a job; hanging up cancels it and gives None."""
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
