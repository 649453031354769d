"""The HTTP API and the page's files over one service."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse

import clipgraft
from clipgraft.generation.requests import ImageRequest
from clipgraft.section import ImageFormat, Like
from clipgraft.studio.answers import (
    IMAGE_BODY,
    NotFoundError,
    answers,
    client_name,
    handle_errors,
    report_response,
)
from clipgraft.studio.events import Events
from clipgraft.studio.file_settings import settings_from_file
from clipgraft.studio.image_files import FILE_QUALITY
from clipgraft.studio.openai_api import openai_routes
from clipgraft.studio.openai_edits import edit_routes
from clipgraft.studio.openai_images import generation_routes
from clipgraft.studio.queue import BusyError, ImageRow, JobRow
from clipgraft.studio.schemas import JobRequest, PromptRequest, SearchRequest
from clipgraft.studio.security import Access, Guard
from clipgraft.studio.service import Service
from clipgraft.studio.training_api import check_routes, training_routes
from clipgraft.studio.uploads_api import upload_routes

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {path.name: path for path in PAGE.iterdir() if path.suffix in (".js", ".css", ".svg")}
"""By name; nothing else is ever served."""
Id = Annotated[
    str, Like("^[0-9a-f]{16}$", "16 digits of 0-9 and a-f"), PathParameter(examples=["1f0c9a52e3b84d17"])
]
RunName = Annotated[str, PathParameter(max_length=2000, examples=["demo"])]
SEARCHABLE = "with a CLIP before and after fine-tuning"
T = TypeVar("T")


def build_app(service: Service, access: Access | None = None) -> Guard:
    """Build the API inside its guard."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="clipgraft studio",
        version=clipgraft.__version__,
        # FastAPI's own documentation pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=lifespan,
    )
    access, limits = access or Access(), service.limits
    handle_errors(app)
    for router in (
        openai_routes(service),
        generation_routes(service, access.public_url),
        edit_routes(service, access.public_url),
        _job_routes(service),
        _image_routes(service, "/v1/images"),
        upload_routes(service),
        _run_routes(service),
        training_routes(service),
        check_routes(service),
        _page_routes(service),
    ):
        app.include_router(router)
    # Addresses of earlier versions.
    app.include_router(_image_routes(service, "/v1/pictures"), include_in_schema=False)
    return Guard(app, access, limits.max_body_bytes, limits.body_seconds)


def _job_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["jobs"])
    feeds = Events(service)

    def job_of(job_id: str) -> JobRow:
        job = service.queue.job(job_id)
        if job is None:
            raise NotFoundError("job", job_id)
        return job

    @router.post("/jobs", status_code=202, responses=answers("job", 202))
    def create_job(body: JobRequest, request: Request) -> Any:
        """Queue images and answer at once; `events` reports progress."""
        images = _expanded(service, body)
        job_id = service.submit(client_name(request, body.client), body.kind, images)
        return JSONResponse(service.describe(job_of(job_id)), status_code=202)

    @router.get("/jobs", responses=answers("jobs"))
    def list_jobs(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Any:
        """The newest jobs."""
        return JSONResponse({"jobs": [service.describe(job) for job in service.queue.jobs(limit)]})

    @router.get("/jobs/{job_id}", responses=answers("job"))
    def show_job(job_id: Id) -> Any:
        """A job with its images and their progress."""
        return JSONResponse(service.describe(job_of(job_id)))

    @router.post("/jobs/{job_id}/cancel", responses=answers("job"))
    def cancel_job(job_id: Id) -> Any:
        """Cancel a job unless it has ended. The body is `{}`."""
        job = job_of(job_id)
        service.cancel(job.id)
        return JSONResponse(service.describe(job_of(job_id)))

    @router.get("/jobs/{job_id}/events", responses=answers("events", media_type="text/event-stream"))
    async def events(job_id: Id) -> Any:
        """A job as server-sent events: `job` at every change, until it ends."""
        return feeds.listen(await asyncio.to_thread(job_of, job_id))

    @router.post("/estimates", responses=answers("estimate"))
    def estimate(body: JobRequest) -> Any:
        """Count a job's images and steps, and the images before it.

        `training` names the training for which images wait, if there is one.
        """
        return _estimate(service, [job for _, job in _expanded(service, body)])

    @router.post("/prompts", responses=answers("prompt"))
    def read_prompt(body: PromptRequest) -> Any:
        """A model's reading of a prompt: tokens, cut-off text, unknown words."""
        model = body.model or service.catalog.default_model()
        return {"model": model, **service.read_prompt(model, body.prompt, body)}

    return router


def _image_routes(service: Service, prefix: str) -> APIRouter:
    router = APIRouter(prefix=prefix, tags=["images"])

    def image_of(image_id: str) -> ImageRow:
        row = service.queue.image(image_id)
        if row is None or row.state != "ok":
            raise NotFoundError("image", image_id)
        return row

    @router.get("", responses=answers("images"))
    def list_images(
        search: Annotated[str, Query(max_length=200, examples=["dog beach"])] = "",
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 60,
    ) -> Any:
        """Generated images, newest first; `before` is the last `number` seen."""
        rows = service.queue.history(search, before=before, limit=limit)
        return JSONResponse({"images": [service.describe_image(row) for row in rows]})

    @router.post("/settings", responses=answers("settings"), openapi_extra=IMAGE_BODY)
    def read_settings(body: Annotated[bytes, Body(media_type="image/png")]) -> Any:
        """The settings in an image, also of another tool; nothing is kept."""
        return JSONResponse(
            settings_from_file(body, service.limits.max_upload_pixels, service.named, service.vae)
        )

    @router.get("/{image_id}.{extension}", responses=answers("file", media_type="image/png"))
    def image_file(
        image_id: Id,
        extension: Annotated[ImageFormat, PathParameter(examples=["png"])],
        metadata: bool = True,
        quality: Annotated[int, Query(ge=0, le=100)] = FILE_QUALITY,
    ) -> Any:
        """An image's file; `metadata=false` leaves out its settings, `quality` is JPEG's and WebP's."""
        image_of(image_id)
        content = service.files.read(image_id, extension, with_metadata=metadata, quality=quality)
        headers = {"cache-control": "private, max-age=31536000, immutable"}
        return Response(content, media_type=f"image/{extension}", headers=headers)

    @router.get("/{image_id}/preview", responses=answers("file", media_type="image/jpeg"))
    def preview(image_id: Id) -> Any:
        """The latest preview of a running image, or the finished image."""
        content = service.preview(image_id)
        if not content:
            raise NotFoundError("preview", image_id)
        return Response(content, media_type="image/jpeg")

    @router.get("/{image_id}", responses=answers("image"))
    def show_image(image_id: Id) -> Any:
        """An image's model and settings."""
        return JSONResponse(service.describe_image(image_of(image_id)))

    @router.delete("/{image_id}", responses=answers("deleted"))
    def delete_image(image_id: Id) -> Any:
        """Delete an image and its settings."""
        image_of(image_id)
        return {"deleted": service.delete_image(image_id)}

    return router


def _run_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["runs"])

    def find(what: str, name: str, look_up: Callable[[], T], wanted: str = "") -> T:
        try:
            return look_up()
        except KeyError:
            raise NotFoundError(what, name, wanted) from None

    @router.get("/runs", responses=answers("runs"))
    def list_runs() -> Any:
        """Training runs; `searchable` are those with a CLIP before and after fine-tuning."""
        return {"runs": service.catalog.runs(), "searchable": service.catalog.searchable_runs()}

    @router.get("/runs/{name}", responses=answers("run"))
    def show_run(name: RunName) -> Any:
        """A run with its loss so far."""
        return JSONResponse(find("run", name, lambda: service.catalog.run(name)))

    @router.get("/runs/{name}/report", responses=answers("report", media_type="text/html"))
    def report(name: RunName) -> Any:
        """A run's report: one page without requests, only its slider's script."""
        return report_response(find("run", name, lambda: service.catalog.report(name), "with a report"))

    @router.post("/search", responses=answers("search"))
    def search(body: SearchRequest) -> Any:
        """A run's test images nearest to a caption, before and after fine-tuning."""
        if not service.slots.acquire(blocking=False):
            raise BusyError("too many searches are running; try again")
        try:
            found = partial(service.embedder.search, body.run, body.caption, body.limit)
            return find("run", body.run, found, SEARCHABLE)
        finally:
            service.slots.release()

    @router.get("/search/{name}", responses=answers("progress"))
    def search_progress(name: RunName) -> Any:
        """Progress of a run's first search; null while none is running."""
        if name not in service.catalog.searchable_runs():
            raise NotFoundError("run", name, SEARCHABLE)
        done, total = service.embedder.progress.get(name, (None, None))
        return {"done": done, "total": total}

    @router.get("/search/{name}/{number}", responses=answers("file", media_type="image/jpeg"))
    def search_image(
        name: RunName, number: Annotated[int, PathParameter(ge=0, le=10**6, examples=[0])]
    ) -> Any:
        """A found image, small."""
        content = find("image", f"{name}/{number}", lambda: service.embedder.thumbnail(name, number))
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    return router


def _page_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["studio"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health", responses=answers("health"))
    def health() -> Any:
        """Whether the studio takes jobs, or why not; needs no token."""
        if service.is_stopping:
            return JSONResponse({"status": "stopping", "reason": "the studio is stopping"}, 503)
        if not service.worker.is_alive():
            reason = "the generating thread has ended; restart the studio"
            return JSONResponse({"status": "not generating", "reason": reason}, 503)
        problem = service.health.problem()
        return JSONResponse({"status": "failing", "reason": problem}, 503) if problem else {"status": "ok"}

    @router.get("/", include_in_schema=False)
    def index() -> Any:
        return FileResponse(PAGE / "index.html", media_type="text/html")

    @router.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Any:
        if name not in PAGE_FILES:
            raise NotFoundError("file", name[:100])
        return FileResponse(PAGE_FILES[name], headers={"cache-control": "no-cache"})

    return router


def _estimate(service: Service, requests: list[ImageRequest]) -> dict[str, Any]:
    service.check_size(requests)
    return {
        "num_images": len(requests),
        "num_steps": sum(request.num_steps for request in requests),
        "images_before": service.queue.count_before(),
        "training": service.training_name,
    }


def _expanded(service: Service, body: JobRequest) -> list[tuple[str, ImageRequest]]:
    catalog = service.catalog
    axes = (value for axis in body.axes if axis.name == "model" for value in axis.values)
    for name in (*body.models, *map(str, axes)):
        catalog.model(name)
    return body.requests(
        catalog.default_model(),
        lambda model: catalog.model(model)[0].defaults,
        service.limits.max_images_per_job,
        service.named,
    )
