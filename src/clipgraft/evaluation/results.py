"""Typed results of an evaluation: evaluation.json, its tables, and metrics.json.

Every field has a default, so incomplete files can be read; docs/evaluation.md describes each key.
"""

from io import StringIO
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from clipgraft.errors import DataError
from clipgraft.files import parse_json
from clipgraft.flatland import ATTRIBUTES
from clipgraft.runs.run import StageResult

SCHEMA, SCHEMA_VERSION = "clipgraft.evaluation", 2

TEACHER, REAL, EMPTY, SHUFFLED, RANDOM, CHANCE = (
    "teacher",
    "real_images",
    "empty_prompt",
    "shuffled_captions",
    "random_bridge",
    "chance",
)
"""Ceilings and floors."""
FIXED = "fixed"
"""Set of flatland's fixed prompts in plain words."""
PLAIN = "plain"
"""Of these, the simple ones."""
COMPOSED = "composed"
"""Of these, the ones with a relation, number, side, size, weather or second subject."""
STATUSES = ("ok", "failed_nan", "failed_black", "blocked")

TABLE_WIDTH = 160
OLD_NAMES = {
    "columns": "variants",
    "column": "variant",
    "pictures": "images",
    "num_pictures": "num_images",
    "from": "baseline",
    "to": "variant",
    "picture_to_caption_recall@1": "clip_r_precision",
    "real_pictures": "real_images",
}
"""Keys and names of version 1 -> those of version 2."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class Record(BaseModel):
    """Part of evaluation.json: unknown keys are ignored, NaN is written as null."""

    model_config = ConfigDict(
        frozen=True, ser_json_inf_nan="null", validate_by_name=True, serialize_by_alias=True
    )


class Variant(Record):
    """One text encoder, or a floor or ceiling."""

    name: str
    role: Literal["measured", "floor", "ceiling"] = "measured"
    title: str = ""
    sha256: str = ""
    """Checksum of the text encoder's weights; empty for images without one."""


class Metric(Record):
    """Description of a metric."""

    title: str
    what: str = ""
    """Definition in one sentence."""
    unit: str = ""
    """`share` (0 to 1), `cosine`, `dB`, or empty."""
    higher_is_better: bool | None = None
    kind: Literal["mean", "distribution"] = "mean"
    """A mean over prompts, or a distance over all images at once."""
    extractor: str = ""
    """Model that extracts the features; empty if none are needed."""


class PromptSet(Record):
    """A set of prompts, or a part of one."""

    name: str
    title: str = ""
    domain: str = ""
    """`in` or `out` of CLIP's fine-tuning domain."""
    part_of: str | None = None
    num_prompts: int = 0


class Prompt(Record):
    """A prompt, with its photograph if any."""

    id: int
    prompt: str = ""
    image_id: str | None = None
    sets: list[str] = []


class Measure(Record):
    """A number with its 95 % interval over prompts."""

    value: Number = None
    interval: tuple[float, float] | None = None
    interval_method: str | None = None
    num: int = 0
    """Number of prompts with a score (of distances: images)."""
    note: str = ""
    """Reason for a missing value or interval, and other caveats."""


class Figure(Measure):
    """A metric of one variant over one prompt set."""

    metric: str
    prompt_set: str = ""
    variant: str = ""


class Difference(Measure):
    """`variant` minus `baseline`, over the prompts and seeds of both."""

    metric: str
    prompt_set: str = ""
    baseline: str = ""
    variant: str = ""
    num_better: int | None = None
    num_worse: int | None = None


class Counts(Record):
    """Images of a variant in a prompt set, by status."""

    variant: str
    prompt_set: str = ""
    num_images: int = 0
    ok: int = 0
    failed_nan: int = 0
    failed_black: int = 0
    blocked: int = 0


class ScoredImage(Record):
    """One generated image; `file` is relative to evaluation.json."""

    variant: str
    prompt_id: int
    seed: int = 0
    file: str
    status: str = "ok"
    scores: dict[str, float] = {}


class NearestImage(Record):
    """A generated image beside the training image nearest to it."""

    variant: str
    prompt_id: int
    seed: int = 0
    file: str
    image_id: str = ""
    training_file: str
    """Small copy of the training image."""
    cosine: Number = None


class BaseWeights(Record):
    """The base that generated the images."""

    name: str = ""
    unet_sha256: str = ""
    vae_sha256: str = ""


class Scorer(Record):
    """The CLIP that scored them."""

    name: str = ""
    sha256: str = ""
    is_independent: bool = True
    """False if a compared CLIP is the scorer or was tuned from it."""


class FeatureExtractor(Record):
    """Feature extractor of KID and FID."""

    name: str = ""
    size: int | None = None


class Settings(Record):
    """Settings of generation and scoring."""

    num_prompts: int = 0
    num_images_per_prompt: int = 1
    seed: int = 0
    batch_size: int = 0
    force: bool = False
    num_inference_steps: int | None = None
    guidance_scale: Number = None
    base: BaseWeights = BaseWeights()
    scheduler: str = ""
    height: int = 0
    width: int = 0
    dtype: str = ""
    text_encoder_dtype: str = ""
    resize_filter: str = ""
    scorer: Scorer = Scorer()
    feature_extractor: FeatureExtractor = FeatureExtractor()


class Data(Record):
    """The captioned images; all but `num_reference_images` empty without any."""

    source: str = ""
    format: str = ""
    fingerprint: str = ""
    split: str = ""
    num_images: int = 0
    num_train_images: int = 0
    num_reference_images: int = 0
    """Test images not described by a prompt; the reference of distances."""
    damaged: dict[str, str] = {}
    """Image id -> reason, of photographs that were skipped."""


class Fidelity(Record):
    """Prompt fidelity of a variant over flatland's plain prompts."""

    mean: Number
    interval: tuple[float, float] | None
    all_at_once: Number
    by_attribute: dict[str, float]
    held_out: Number
    seen: Number
    num_prompts: int
    composed: dict[str, float] = {}
    """Mean of each kind of composed prompt."""


class ShortMetrics(StageResult):
    """Content of metrics.json."""

    stage: str = "evaluate"
    schema_version: int = SCHEMA_VERSION
    scores: dict[str, Fidelity]
    probe_accuracy: dict[str, float]
    """The probe's accuracy on flatland's own images, by attribute."""
    settings: Settings


class Evaluation(Record):
    """Content of evaluation.json."""

    schema_name: str = Field(default=SCHEMA, alias="schema")
    schema_version: int = SCHEMA_VERSION
    settings: Settings = Settings()
    data: Data = Data()
    variants: list[Variant] = []
    metrics: dict[str, Metric] = {}
    prompt_sets: list[PromptSet] = []
    prompts: list[Prompt] = []
    figures: list[Figure] = []
    differences: list[Difference] = []
    counts: list[Counts] = []
    images: list[ScoredImage] = []
    nearest_training_images: list[NearestImage] = []
    """Nearest first."""
    notes: list[str] = []
    """Caveats, one sentence each."""
    environment: dict[str, Any] = {}
    seconds: Number = None

    @classmethod
    def from_json(cls, text: str, name: str = "evaluation.json") -> "Evaluation":
        """Read evaluation.json of this version or an older one.

        Raises:
            DataError: If it is not JSON, is of a newer version, or a value has the wrong type.
        """
        values = parse_json(text, name)
        version = values.get("schema_version", 0)
        if version not in range(SCHEMA_VERSION + 1):
            raise DataError(
                f"{name} is of version {version}, and this clipgraft reads up to {SCHEMA_VERSION}; update "
                "clipgraft"
            )
        if version < SCHEMA_VERSION:
            values = _from_old(values)
        try:
            return cls.model_validate(values | {"schema_version": SCHEMA_VERSION})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{name}: {place}: {first['msg'].lower()}") from error

    def to_json(self) -> str:
        """Return the text of evaluation.json."""
        return self.model_dump_json(indent=2) + "\n"

    def figure(self, metric: str, prompt_set: str, variant: str) -> Figure | None:
        """Return one figure; None if not measured."""
        wanted = metric, prompt_set, variant
        return next((f for f in self.figures if (f.metric, f.prompt_set, f.variant) == wanted), None)

    def difference(self, baseline: str, variant: str) -> list[Difference]:
        """Return the paired differences `variant` minus `baseline`."""
        return [row for row in self.differences if (row.baseline, row.variant) == (baseline, variant)]

    def names(self, role: str = "measured") -> list[str]:
        """Return the names of the variants with a role, in order."""
        return [variant.name for variant in self.variants if variant.role == role]

    def short_metrics(self) -> ShortMetrics:
        """Return metrics.json: prompt fidelity over flatland's plain prompts."""

        def value(metric: str, prompt_set: str, variant: str) -> float | None:
            found = self.figure(metric, prompt_set, variant)
            return found.value if found else None

        scores = {
            row.variant: Fidelity(
                mean=row.value,
                interval=row.interval,
                all_at_once=value("prompt_fidelity_all_at_once", PLAIN, row.variant),
                by_attribute={
                    name: found
                    for name in ATTRIBUTES
                    if (found := value(f"prompt_fidelity_{name}", PLAIN, row.variant)) is not None
                },
                held_out=value("prompt_fidelity", f"{PLAIN}/held_out_combinations", row.variant),
                seen=value("prompt_fidelity", f"{PLAIN}/seen_combinations", row.variant),
                num_prompts=row.num,
                composed={
                    each.prompt_set.removeprefix(f"{COMPOSED}/"): each.value
                    for each in self.figures
                    if (each.metric, each.variant) == (row.metric, row.variant)
                    and each.prompt_set.startswith(f"{COMPOSED}/")
                    and each.value is not None
                },
            )
            for row in self.figures
            if (row.metric, row.prompt_set) == ("prompt_fidelity", PLAIN)
        }
        accuracy = scores[REAL].by_attribute if REAL in scores else {}
        return ShortMetrics(scores=scores, probe_accuracy=accuracy, settings=self.settings)

    def describe_settings(self) -> str:
        """Describe generation and scoring in one line, "" if unknown."""
        if "settings" not in self.model_fields_set:
            return ""
        settings, data = self.settings, self.data
        parts = {
            "base": settings.base.name,
            "images": f"{len(self.images):,}",
            "prompts": settings.num_prompts,
            "images per prompt": settings.num_images_per_prompt,
            "seed": str(settings.seed),
            "steps": settings.num_inference_steps,
            "guidance": settings.guidance_scale,
            "scheduler": settings.scheduler,
            "size": f"{settings.width} x {settings.height}" if settings.width else "",
            "precision": settings.dtype,
            "scorer": settings.scorer.name,
            "features": settings.feature_extractor.name,
            "resizing": settings.resize_filter,
            "data": f"{data.source}, {data.split} split" if data.source else "",
        }
        return ", ".join(f"{name}: {value}" for name, value in parts.items() if value) + "."

    def table(self, prompt_set: str = "") -> str:
        """Return the headline metrics of all prompt sets, or one, as text."""
        from rich.console import Console

        from clipgraft.evaluation.figures import headline_tables

        console = Console(file=StringIO(), width=TABLE_WIDTH, markup=False, emoji=False)
        for table in headline_tables(self, prompt_set):
            console.print(table)
        return console.file.getvalue()  # type: ignore[attr-defined]


def _from_old(value: Any) -> Any:
    """Rename keys and names of version 1, at any depth."""
    if isinstance(value, dict):
        return {OLD_NAMES.get(key, key): _from_old(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_old(item) for item in value]
    return OLD_NAMES.get(value, value) if isinstance(value, str) else value
