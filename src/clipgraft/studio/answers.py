"""Answers described for OpenAPI; errors of all routes in OpenAI's shape."""

import json
import reprlib
import secrets
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from clipgraft.device import without_folders
from clipgraft.errors import (
    MAX_SHOWN,
    NO_SPACE,
    CheckpointError,
    MissingFileError,
    UserError,
    is_no_space,
    one_line,
    plain_reason,
)
from clipgraft.reporting.html import script_hash
from clipgraft.studio.catalog import UnknownModelError
from clipgraft.studio.database import UnavailableError
from clipgraft.studio.queue import BusyError
from clipgraft.studio.security import UPLOAD_TYPES, error_body
from clipgraft.studio.service import StoppedError

RETRY_SECONDS = 5
"""By then a restart, another program's lock, a full disk or a full queue may be over (guess)."""
DESCRIPTION = json.loads(Path(__file__).with_name("openapi.json").read_text(encoding="utf-8"))
"""Examples of answers, and errors by status, for the OpenAPI description."""
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in UPLOAD_TYPES},
    }
}
"""Of a route whose body is an image."""
# Only the slider's script (by its hash), sandboxed in an origin of its own.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'self'; script-src 'sha256-{script_hash()}'; sandbox allow-scripts"
)


class NotFoundError(LookupError):
    """There is no such model, job, image or run.

    Args:
        what: Such as "run".
        name: As asked for.
        wanted: What it would have to have, such as "with a report".
    """

    def __init__(self, what: str, name: str, wanted: str = ""):
        super().__init__(f"there is no {what} {name!r} {wanted}".rstrip())
        self.code = f"{what}_not_found"


class NoImageError(RuntimeError):
    """A call gave no image; knows HTTP status, code and field."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


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
    handle(StoppedError, 503)
    handle(UnavailableError, 503, "unavailable")

    @app.exception_handler(NoImageError)
    async def _(_request: Request, error: NoImageError) -> JSONResponse:
        return _error(error.status, error.code, str(error), error.param)

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _error(422, "invalid_value", f"the body is not JSON: {first['ctx']['error']}")
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        if not place and first["type"] == "missing":
            return _error(422, "invalid_value", "the body is empty")
        message = f"{'.'.join(place) or 'body'}: {plain_reason(first['msg'])}"
        if place and first["type"] != "missing":  # whose input is the whole body
            message += f"; got {reprlib.repr(first['input'])}"
        return _error(422, "invalid_value", message, place[0] if place else None)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        asked = f": {request.method} {request.url.path[:MAX_SHOWN]}" if code else ""
        if error.status_code == 400 and (reason := _unreadable(error.__cause__)):
            return _error(422, "invalid_value", f"the body is not JSON as read here: {reason}")
        message = f"{error.detail}{asked}"
        return _error(error.status_code, code or "bad_request", message, headers=error.headers)

    @app.exception_handler(Exception)
    async def _(_request: Request, error: Exception) -> JSONResponse:
        if is_no_space(error):
            return _error(503, "no_space", f"{NO_SPACE}; free some")
        # The server logs the traceback, and with it this note.
        number = secrets.token_hex(8)
        error.add_note(f"told to the client as error {number}")
        message = f"that went wrong here; the studio's log says how, see error {number}"
        return _error(500, "internal_error", message)


def _unreadable(error: BaseException | None) -> str:
    """Say why a body could not be parsed, which FastAPI does not."""
    match error:
        case RecursionError():
            return "it is nested too deep"
        case UnicodeDecodeError():
            return f"it is not UTF-8 text (byte {error.start})"
        case ValueError():  # of int(): Python's own bound
            return "a number has over 4,300 digits"
    return ""


def report_response(path: Path) -> FileResponse:
    """Send a report, which is untrusted."""
    return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})


def client_name(request: Request, name: str | None) -> str:
    """Return a client's address and the name that it gives itself."""
    address = request.client.host if request.client else ""
    return f"{address} {name or ''}"


def describe_error(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """Return an error of a status in OpenAI's shape."""
    kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    return error_body(code, message, kinds.get(status, "invalid_request_error"), param)


def _error(
    status: int, code: str, message: str, param: str | None = None, headers: Any = None
) -> JSONResponse:
    if status in (429, 503):
        headers = {"Retry-After": str(RETRY_SECONDS)}
    return JSONResponse(describe_error(status, code, message, param), status_code=status, headers=headers)
