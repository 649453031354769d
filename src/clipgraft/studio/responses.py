"""What routes answer: errors in one shape, and an example of every answer for the OpenAPI description."""

import reprlib
import secrets
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clipgraft.device import without_folders
from clipgraft.errors import NO_SPACE, CheckpointError, MissingFileError, UserError, is_no_space, one_line
from clipgraft.studio.catalog import UnknownModelError
from clipgraft.studio.database import UnavailableError
from clipgraft.studio.queue import BusyError
from clipgraft.studio.security import error_body
from clipgraft.studio.service import StoppedError

REASONS = {
    401: "No token, or a wrong one.",
    403: "Asked by another web page, or under another Host.",
    404: "There is no such thing.",
    405: "The route does not do that.",
    408: "The request did not arrive in time.",
    409: "A model's files cannot be used, or the job was cancelled.",
    413: "The request is too large.",
    415: "The request's Content-Type is another one than the route takes.",
    422: "A value is not allowed; the message says which and what is.",
    429: "Too much is waiting; try again after Retry-After seconds.",
    503: "The studio is stopping, or its database or its disk cannot be used now.",
}
RETRY_SECONDS = 5
"""After what may have passed by then: a restart, another program's lock, a full disk (guess)."""
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


class NotFoundError(LookupError):
    """There is no such model, job, image or run."""

    def __init__(self, what: str, name: str, known: list[str] | None = None):
        super().__init__(
            f"there is no {what} {name!r}" + (f"; known are {', '.join(known)}" if known else "")
        )
        self.code = f"{what}_not_found"


def answers(example: Any, status: int = 200, media_type: str = "application/json") -> dict[int | str, Any]:
    """Describe a route's answers: the good one by an example, errors by their shape."""
    good = {"description": "Done.", "content": {media_type: {"example": example}}}
    if status == 202:
        good["description"] = "Taken up."
    content = {"application/json": {"schema": ERROR_SCHEMA}}
    return {
        status: good,
        **{code: {"description": text, "content": content} for code, text in REASONS.items()},
        400: {"description": "The body cannot be read.", "content": content},
    }


def handle_errors(app: FastAPI) -> None:
    """Answer every error in the one shape, without a path of this machine in it."""

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        message = f"{'.'.join(place) or 'body'}: {first['msg']}"
        if place and first["type"] not in ("missing", "json_invalid"):  # these give no value, but all of it
            message += f"; got {reprlib.repr(first['input'])}"
        return _answer(422, "invalid_value", message, place[0] if place else None)

    @app.exception_handler(HTTPException)
    async def _(_request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return _answer(error.status_code, code, str(error.detail), headers=error.headers)

    @app.exception_handler(NotFoundError)
    async def _(_request: Request, error: NotFoundError) -> JSONResponse:
        return _answer(404, error.code, str(error))

    @app.exception_handler(UnknownModelError)
    async def _(_request: Request, error: UnknownModelError) -> JSONResponse:
        return _answer(404, "model_not_found", str(error), "model")

    @app.exception_handler(UserError)
    async def _(_request: Request, error: UserError) -> JSONResponse:
        return _answer(422, "invalid_value", without_folders(one_line(error)))

    @app.exception_handler(MissingFileError)
    async def _(_request: Request, error: MissingFileError) -> JSONResponse:
        return _answer(404, "not_found", without_folders(one_line(error)))

    @app.exception_handler(CheckpointError)
    async def _(_request: Request, error: CheckpointError) -> JSONResponse:
        return _answer(409, "model_unusable", without_folders(one_line(error)), "model")

    @app.exception_handler(BusyError)
    async def _(_request: Request, error: BusyError) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_SECONDS)}
        return _answer(429, "rate_limit_exceeded", str(error), kind="rate_limit_error", headers=headers)

    @app.exception_handler(StoppedError)
    async def _(_request: Request, error: StoppedError) -> JSONResponse:
        return _unavailable("stopping", str(error))

    @app.exception_handler(UnavailableError)
    async def _(_request: Request, error: UnavailableError) -> JSONResponse:
        return _unavailable("unavailable", str(error))

    @app.exception_handler(Exception)
    async def _(_request: Request, error: Exception) -> JSONResponse:
        if is_no_space(error):
            return _unavailable("no_space", f"{NO_SPACE}; free some")
        # The server logs the traceback, and with it this note.
        number = secrets.token_hex(8)
        error.add_note(f"told to the client as error {number}")
        message = f"that went wrong here; the studio's log says how, see error {number}"
        return _answer(500, "internal_error", message, kind="server_error")


def image_error(status: str, error: str) -> JSONResponse:
    """Answer for a call of which no image came out."""
    if status == "cancelled":
        return _answer(409, "cancelled", "the job was cancelled while it was waited for")
    if status == "blocked":
        message = "the base's safety checker blocked the image"
        return _answer(400, "content_policy_violation", message, "prompt")
    if error.startswith(NO_SPACE):
        return _unavailable("no_space", error)
    reasons = {
        "failed_nan": "the image's values are no numbers",
        "failed_black": "the image is all black",
    }
    return _answer(500, status, reasons.get(status, error or status), kind="server_error")


def _unavailable(code: str, message: str) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return _answer(503, code, message, kind="server_error", headers=headers)


def _answer(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    *,
    kind: str = "invalid_request_error",
    headers: Any = None,
) -> JSONResponse:
    return JSONResponse(error_body(code, message, kind, param), status_code=status, headers=headers)
