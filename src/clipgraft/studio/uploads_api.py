"""What a request may name: uploaded images, and the server's models."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse

from clipgraft.studio.answers import IMAGE_BODY, answers
from clipgraft.studio.service import Service
from clipgraft.studio.uploads import UPLOAD_ID

UploadId = Annotated[str, UPLOAD_ID, PathParameter(examples=["0" * 64])]


def upload_routes(service: Service) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1", tags=["images"])

    @router.post("/uploads", responses=answers("upload"), openapi_extra=IMAGE_BODY)
    def upload(body: Annotated[bytes, Body(media_type="image/png")]) -> Any:
        """Keep an image, which jobs name by its `id`."""
        return asdict(service.uploads.add(body))

    @router.get("/uploads/{upload_id}.png", responses=answers("file", media_type="image/png"))
    def uploaded(upload_id: UploadId) -> Any:
        """An uploaded image's pixels."""
        headers = {"cache-control": "private, max-age=31536000, immutable"}
        return Response(service.uploads.png(upload_id), media_type="image/png", headers=headers)

    @router.get("/adapters", responses=answers("adapters"))
    def list_adapters() -> Any:
        """Models that a request may add, by kind and name."""
        return JSONResponse(service.named.models.listed())

    return router
