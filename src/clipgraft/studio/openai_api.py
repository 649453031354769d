"""Routes that OpenAI's clients know, but for images: models and embeddings."""

import base64
from dataclasses import asdict
from typing import Annotated, Any, get_args

import numpy as np
from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse

from clipgraft.errors import DataError
from clipgraft.generation.contact_sheet import VARIANT_LABELS
from clipgraft.scheduler_recipes import SCHEDULERS
from clipgraft.studio.answers import answers
from clipgraft.studio.catalog import UnknownModelError
from clipgraft.studio.image_files import count_pixels, read_base64
from clipgraft.studio.queue import BusyError
from clipgraft.studio.schemas import AxisName, EmbeddingsRequest, ImageInput, Limits
from clipgraft.studio.service import Service


def openai_routes(service: Service) -> APIRouter:
    """Make the routes for models and embeddings."""
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
            "samplers": {name: recipe.a1111_name for name, recipe in SCHEDULERS.items()},
            "axes": list(get_args(AxisName)),
            "vae": service.vae,
        }

    @router.get("/models/{model:path}", responses=answers("model"))
    def show_model(model: Annotated[str, PathParameter(max_length=200, examples=["demo/after"])]) -> Any:
        """What a model does."""
        rows = _model_rows(service)
        if model not in rows:
            raise UnknownModelError(model, rows)
        return rows[model]

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
        | (
            {
                **asdict(models[name][0].defaults),
                "width": models[name][0].text_width,
                "description": VARIANT_LABELS.get(name.split("/")[-1], ""),
            }
            if name in models
            else {}
        )
        for name, what in does.items()
    }


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
