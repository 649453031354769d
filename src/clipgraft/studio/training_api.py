"""Routes that check data sets and start, stop and resume trainings."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse

from clipgraft.errors import UserError
from clipgraft.files import inside, read_bytes, read_json
from clipgraft.studio.answers import NotFoundError, answers, report_response
from clipgraft.studio.service import Service
from clipgraft.studio.training_jobs import TrainingJob
from clipgraft.studio.training_plans import (
    RUN_NAME,
    CheckRequest,
    DataName,
    TrainingRequest,
    describe_choices,
    plan_training,
)

SAMPLES_NAME = "previews"
"""Folder of the samples in a run."""
Run = Annotated[str, RUN_NAME, PathParameter(examples=["dogs"])]
Data = Annotated[DataName, Query(examples=["photos"])]


def training_routes(service: Service) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1", tags=["training"])
    trainings = service.trainings

    def training_of(name: str) -> TrainingJob:
        job = trainings.training(name)
        if job is None:
            raise NotFoundError("training", name)
        return job

    @router.get("/trainings", responses=answers("trainings"))
    def list_trainings() -> Any:
        """What can be trained, and the trainings so far, newest first."""
        return _overview(service)

    @router.post("/trainings", status_code=202, responses=answers("training", 202))
    def start_training(body: TrainingRequest) -> Any:
        """Start a training; images wait until it ends."""
        folder = service.data.folder(body.data)
        plan = plan_training(body, service.catalog, folder, service.cache.device)
        job = trainings.start_training(body.kind, body.name, body.data, plan)
        return JSONResponse(_described(service, job), status_code=202)

    @router.get("/trainings/{name}", responses=answers("training"))
    def show_training(name: Run) -> Any:
        """A training with the last lines of its output, and its samples."""
        return _described(service, training_of(name))

    @router.post("/trainings/{name}/stop", responses=answers("training"))
    def stop_training(name: Run) -> Any:
        """Stop a training once its state is saved; asked again, at once.

        The body is `{}`.
        """
        trainings.stop(training_of(name))
        return _described(service, training_of(name))

    @router.post("/trainings/{name}/resume", status_code=202, responses=answers("training", 202))
    def resume_training(name: Run) -> Any:
        """Go on with a training; the body is `{}`."""
        training_of(name)
        return JSONResponse(_described(service, trainings.resume(name)), status_code=202)

    @router.get(
        "/trainings/{name}/samples/{step}/{number}", responses=answers("file", media_type="image/png")
    )
    def sample(
        name: Run,
        step: Annotated[int, PathParameter(ge=0, le=10**8, examples=[50])],
        number: Annotated[int, PathParameter(ge=0, le=1000, examples=[0])],
    ) -> Any:
        """An image by the CLIP in training after a step."""
        run = service.catalog.runs_dir / training_of(name).name
        path = inside(run / SAMPLES_NAME / f"step-{step:08d}" / f"{number}.png", run)
        if not path.is_file():
            raise NotFoundError("sample", f"{name}/{step}/{number}")
        return Response(read_bytes(path), media_type="image/png")

    return router


def check_routes(service: Service) -> APIRouter:
    """Make the routes for checks of data sets."""
    router = APIRouter(prefix="/v1/checks", tags=["training"])
    trainings = service.trainings

    def check_of(data: str) -> TrainingJob:
        service.data.folder(data)
        job = trainings.check(data)
        if job is None:
            raise NotFoundError("check", data or "the data folder itself", "yet")
        return job

    @router.post("", status_code=202, responses=answers("check", 202))
    def start_check(body: CheckRequest) -> Any:
        """Check a data set: counts, and what is odd in it."""
        job = trainings.start_check(body.data, service.data.folder(body.data))
        return JSONResponse(_checked(service, job), status_code=202)

    @router.get("", responses=answers("check"))
    def show_check(data: Data = "") -> Any:
        """The last check of a data set."""
        return _checked(service, check_of(data))

    @router.post("/stop", responses=answers("check"))
    def stop_check(body: CheckRequest) -> Any:
        """Stop a check."""
        trainings.stop(check_of(body.data))
        return _checked(service, check_of(body.data))

    @router.get("/sheet", responses=answers("report", media_type="text/html"))
    def sheet(data: Data = "") -> Any:
        """A check's page with images: samples, and examples of each finding."""
        path = trainings.folder(check_of(data)) / "sheet.html"
        if not path.is_file():
            raise NotFoundError("sheet", data)
        return report_response(path)

    return router


def _overview(service: Service) -> dict[str, Any]:
    trainings, root = service.trainings, service.data.root
    current = trainings.current
    return {
        "data": service.data.names(),
        "data_folder": root.name if root else None,
        **describe_choices(service.catalog),
        "at_work": current and {"kind": current.kind, "name": current.name},
        "trainings": [_summary(job) for job in trainings.trainings()],
    }


def _summary(job: TrainingJob) -> dict[str, Any]:
    shown = job.model_dump(include={"kind", "name", "data", "state", "error", "created", "started", "ended"})
    return shown | {"can_resume": job.can_resume}


def _described(service: Service, job: TrainingJob) -> dict[str, Any]:
    return _summary(job) | {
        "output": service.trainings.tail(job),
        "samples": _samples(service, job.name),
    }


def _samples(service: Service, name: str) -> list[dict[str, int]]:
    """Return steps with samples and their numbers, latest first."""
    folder = service.catalog.runs_dir / name / SAMPLES_NAME
    steps = sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
    return [
        {"step": int(step.name[5:]), "images": sum(1 for _ in step.glob("*.png"))}
        for step in steps
        if re.fullmatch("step-[0-9]{8}", step.name)
    ]


def _checked(service: Service, job: TrainingJob) -> dict[str, Any]:
    """Describe a check: its state, and what it found."""
    shown = job.model_dump(include={"data", "state", "error", "created", "ended"})
    shown |= {"output": service.trainings.tail(job), "result": None}
    path = service.trainings.folder(job) / "result.json"
    if job.state != "done" or not path.is_file():
        return shown
    try:
        found = read_json(path)
        result = {
            "format": found["format"],
            "split_rule": found["split_rule"],
            "counts": found["counts"],
            "notes": [*found["notes"], *found["not_measured"]],
            "excluded": _rows(found["excluded"], "kind", "reason", "count"),
            "findings": _rows(found["findings"], "kind", "summary", "effect"),
        }
    except (KeyError, TypeError, UserError):
        return shown | {"error": "the check's result is damaged; check again"}
    return shown | {"result": result}


def _rows(rows: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in keys} for row in rows]
