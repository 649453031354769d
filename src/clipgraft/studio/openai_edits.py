"""Images from images for OpenAI's clients: edits, within a mask, and variations."""

import asyncio
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from clipgraft.errors import UserError
from clipgraft.studio.answers import answers
from clipgraft.studio.image_files import decode_mask
from clipgraft.studio.openai_images import answer_images
from clipgraft.studio.schemas import EditRequest, VariationRequest
from clipgraft.studio.service import Service

MAX_FILES, MAX_FIELDS = 4, 64
"""Parts of a form; one more file than is taken, so that it can be named."""
Edit = TypeVar("Edit", bound=EditRequest)


def edit_routes(service: Service, public_url: str) -> APIRouter:
    """Make the routes; as `generation_routes`."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    async def edited(request: Request, kind: type[Edit]) -> Any:
        body, files = await _read_form(request, kind)
        if "image" not in files:
            raise UserError("image: the file to start from is missing")
        kept = await asyncio.to_thread(_keep, service, files)
        model = body.model or service.catalog.default_model()
        defaults = service.catalog.model(model)[0].defaults
        requests = await asyncio.to_thread(body.edits, defaults, service.named, *kept)
        return await answer_images(service, public_url, request, body, [(model, each) for each in requests])

    @router.post("/images/edits", responses=answers("generations"), openapi_extra=_form_of(EditRequest))
    async def edit_images(request: Request) -> Any:
        """Change an image after a prompt: what is transparent or white in `mask`, else all of it."""
        return await edited(request, EditRequest)

    @router.post(
        "/images/variations", responses=answers("generations"), openapi_extra=_form_of(VariationRequest)
    )
    async def vary_images(request: Request) -> Any:
        """Change an image without a prompt."""
        return await edited(request, VariationRequest)

    return router


async def _read_form(request: Request, kind: type[Edit]) -> tuple[Edit, dict[str, bytes]]:
    """Return the fields of a form, and the content of its files by name."""
    files: dict[str, bytes] = {}
    values: dict[str, str] = {}
    async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
        for name, value in form.multi_items():
            name = name.removesuffix("[]")
            if name in files or name in values:
                raise UserError(f"{name[:50]}: given twice; one is taken")
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                values[name] = value
    for name in files.keys() - {"image", "mask"}:
        raise UserError(f"{name[:50]}: files are taken as image and mask alone")
    try:
        return kind.model_validate(values, strict=False), files  # all values of a form are texts
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _keep(service: Service, files: dict[str, bytes]) -> tuple[str, str]:
    """Keep image and mask, or the image's transparency; return their ids."""
    most = service.limits.max_upload_pixels
    image = service.uploads.add(files["image"])
    mask = decode_mask(files.get("mask", files["image"]), most, is_mask="mask" in files)
    return image.id, service.uploads.add_image(mask).id if mask else ""


def _form_of(kind: type[EditRequest]) -> dict[str, Any]:
    """Describe the form of a route for OpenAPI."""
    schema = kind.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] = {"image": file, "mask": file} | schema["properties"]
    schema["required"] = ["image", *schema.get("required", [])]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
