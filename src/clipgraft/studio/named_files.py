"""Models and uploaded images of a request, by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from clipgraft.generation.request_adapters import TAG
from clipgraft.generation.request_files import file_checksum
from clipgraft.generation.requests import ImageRequest
from clipgraft.sampling_params import (
    DEFAULT_SAMPLING,
    MAX_CONTROLS,
    MAX_FILES,
    MAX_GUIDE_SCALE,
    Guide,
    PromptParams,
    SamplingParams,
    Strength,
)
from clipgraft.section import FROM_LIST, Like, Section, Share
from clipgraft.studio.model_folder import TITLES, Kind, ModelFolder
from clipgraft.studio.uploads import UPLOAD_ID, Uploads

UploadId = Annotated[str, UPLOAD_ID]
"""Of `POST /v1/uploads`."""
OptionalUploadId = Annotated[str, Like(f"{UPLOAD_ID.pattern}|^$", f"{UPLOAD_ID.allowed}, or an empty text")]
ModelName = Annotated[str, Field(min_length=1, max_length=300)]
"""Of `GET /v1/adapters`."""
IMAGES = {"init_image": "initial image", "mask_image": "mask"}
GUIDES: tuple[Kind, ...] = ("controls", "ip_adapters")


class NamedLora(Section):
    """A LoRA, and how strongly it changes U-Net and text encoder."""

    name: ModelName
    strength: Strength = 1.0
    text_strength: Strength | None = None
    """Of its part for the text encoder; null = `strength`."""


class NamedGuide(Section):
    """An IP-Adapter with the image that it follows."""

    model: ModelName
    image: UploadId
    scale: Annotated[float, Field(ge=0, le=MAX_GUIDE_SCALE, allow_inf_nan=False)] = 1.0


class NamedControl(NamedGuide):
    """A ControlNet with its image: edges, a depth map."""

    start: Share = 0.0
    """Share of the steps at which it begins to act."""
    end: Share = 1.0

    @model_validator(mode="after")
    def _has_steps(self) -> "NamedControl":
        if self.start >= self.end:
            raise ValueError("end must be above start")
        return self


class NamedParams(Section):
    """Images and models of a request."""

    init_image: OptionalUploadId = ""
    """Image to start from, cropped to height and width; empty: noise alone."""
    mask_image: OptionalUploadId = ""
    """Of the same size: of `init_image`, what is white here is repainted, the rest stays."""
    strength: Annotated[float, Field(gt=0, le=1)] = DEFAULT_SAMPLING.strength
    """Share of the steps that change `init_image`; 1 = none of it remains."""
    controls: Annotated[tuple[NamedControl, ...], FROM_LIST, Field(max_length=MAX_CONTROLS)] = ()
    ip_adapters: Annotated[tuple[NamedGuide, ...], FROM_LIST, Field(max_length=MAX_CONTROLS)] = ()
    loras: Annotated[tuple[NamedLora, ...], FROM_LIST, Field(max_length=MAX_FILES)] = ()
    """A weighted prompt names them too, as `<lora:NAME:0.8>`."""
    embeddings: Annotated[tuple[ModelName, ...], FROM_LIST, Field(max_length=MAX_FILES)] = ()


class NamedFiles:
    """Finds files by name, and names by file.

    Args:
        models: The server's own.
        uploads: Images of clients.
    """

    def __init__(self, models: ModelFolder, uploads: Uploads):
        self.models, self.uploads = models, uploads

    def located(self, params: NamedParams, prompt: str) -> SamplingParams:
        """Return parameters with files in place of names.

        Args:
            params: With fields of `SamplingParams` besides those of `NamedParams`.
            prompt: May name LoRAs and embeddings, if it is weighted.

        Raises:
            UserError: If a value is not allowed, or the studio has no models of a kind.
            MissingFileError: If there is no model of a name, or no such uploaded image.
        """
        files = self._files(NamedParams.of(params))
        if PromptParams.of(params).prompt_syntax == "weighted":  # names models, as in A1111
            if TAG.search(prompt):
                files["lora_dir"] = self.models.folder("loras")
            if self.models.names("embeddings"):
                files["embedding_dir"] = self.models.folder("embeddings")
        return SamplingParams.of(params, **files)

    def _files(self, named: NamedParams) -> dict[str, Any]:
        images = {name: getattr(named, name) for name in IMAGES}
        return {
            **{name: str(self.uploads.path(each)) if each else "" for name, each in images.items()},
            **{kind: [self._guide(kind, each) for each in getattr(named, kind)] for kind in GUIDES},
            "loras": [
                {"file": str(self.models.path("loras", each.name)), **each.model_dump(exclude={"name"})}
                for each in named.loras
            ],
            "embeddings": [str(self.models.path("embeddings", name)) for name in named.embeddings],
        }

    def _guide(self, kind: Kind, guide: NamedGuide) -> dict[str, Any]:
        model, image = self.models.path(kind, guide.model), self.uploads.path(guide.image)
        return guide.model_dump() | {"model": str(model), "image": str(image)}

    def settings_of(self, request: ImageRequest) -> dict[str, Any]:
        """Return a request as plain values, with names in place of files."""
        params = request.params
        without = dict.fromkeys(IMAGES, "") | dict.fromkeys(TITLES, ())
        text_alone = replace(
            request, params=params.updated({**without, "lora_dir": "", "embedding_dir": ""})
        ).as_record()
        named: dict[str, Any] = {
            **{name: Path(getattr(params, name)).name for name in IMAGES if getattr(params, name)},
            **({"strength": params.strength} if params.init_image else {}),
            **{kind: [self._named_guide(kind, each) for each in getattr(params, kind)] for kind in GUIDES},
            "loras": [
                {"name": self.models.name_of("loras", each.file), **each.model_dump(exclude={"file"})}
                for each in params.loras
            ],
            "embeddings": [self.models.name_of("embeddings", each.file) for each in params.embeddings],
        }
        return text_alone | {name: value for name, value in named.items() if value}

    def _named_guide(self, kind: Kind, guide: Guide) -> dict[str, Any]:
        return guide.model_dump() | {
            "model": self.models.name_of(kind, guide.model),
            "image": Path(guide.image).name,
        }

    def request_of(self, settings: Mapping[str, Any]) -> ImageRequest:
        """Return the request of `settings_of`.

        Raises:
            UserError: If a file is gone, or a value is not allowed.
        """
        named = NamedParams.build(
            {name: settings[name] for name in NamedParams.model_fields & settings.keys()}
        )
        return ImageRequest.from_record(settings, self._files(named))

    def named_in(
        self, record: Mapping[str, Any], guides: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return a record's files by name, and what is missing.

        Args:
            record: Of an image, with checksums of its files.
            guides: Names of its ControlNets' and IP-Adapters' models, in order.

        Raises:
            UserError: If the record is damaged; KeyError, TypeError or ValueError likewise.
        """
        named: dict[str, Any] = {}
        missing = []
        for name, title in IMAGES.items():
            if found := record.get(f"{name}_sha256"):
                if self.uploads.has(found):
                    named[name] = found
                else:
                    missing.append(f"{title} (sha256 {found[:10]})")
        if "mask_image" in named and "init_image" not in named:
            del named["mask_image"]
        if "init_image" in named:
            named["strength"] = record["strength"]
        loras = [(each, self._name_by_checksum("loras", each)) for each in record.get("loras", ())]
        named["loras"] = [
            {name: each[name] for name in ("strength", "text_strength")} | {"name": name}
            for each, name in loras
            if name
        ]
        embeddings = [
            (each, self._name_by_checksum("embeddings", each)) for each in record.get("embeddings", ())
        ]
        named["embeddings"] = [name for _, name in embeddings if name]
        for kind, found in (("LoRA", loras), ("embedding", embeddings)):
            missing += [
                f"{kind} {each['name']} (sha256 {each['sha256'][:10]})" for each, name in found if not name
            ]
        for kind in GUIDES:
            named[kind] = []
            recorded = record.get(kind, ())
            for each, model in zip(recorded, guides.get(kind, [""] * len(recorded)), strict=True):
                if model in self.models.names(kind) and self.uploads.has(each["image_sha256"]):
                    acts = {name: each[name] for name in ("scale", "start", "end") if name in each}
                    named[kind].append({"model": model, "image": each["image_sha256"], **acts})
                else:
                    missing.append(
                        f"{TITLES[kind]} {model}".strip() + f" (image's sha256 {each['image_sha256'][:10]})"
                    )
        NamedParams.build(named)
        return {name: value for name, value in named.items() if value}, missing

    def _name_by_checksum(self, kind: Kind, recorded: Mapping[str, Any]) -> str:
        """Return the name of a recorded file, or an empty text."""
        names = self.models.names(kind)
        if kind == "loras":  # large files: only those of that name
            names = [name for name in names if Path(name).name == recorded["name"]]
        files = ((name, self.models.path(kind, name)) for name in names)
        return next((name for name, path in files if file_checksum(path) == recorded["sha256"]), "")


def guide_names(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return names of models that a record has by checksum alone."""
    return {kind: [each["model"] for each in settings[kind]] for kind in GUIDES if kind in settings}
