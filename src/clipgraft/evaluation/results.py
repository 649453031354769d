"""From scores to what evaluation.json holds; docs/evaluation.md says what that is."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgraft.config import EvaluateSettings
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import open_image
from clipgraft.evaluation.metrics.clipscore import independence_note
from clipgraft.evaluation.metrics.distribution import cmmd, fid, kid, shortage
from clipgraft.evaluation.metrics.retrieval import RECALL_AT, average_precision, retrieval_ranks
from clipgraft.evaluation.prompt_sets import HELD_OUT, TEST_SPLIT, describe_sets, members
from clipgraft.evaluation.schema import (
    METRICS,
    SCHEMA,
    SCHEMA_VERSION,
    absent_row,
    difference_row,
    distribution_rows,
    mean_row,
)
from clipgraft.evaluation.scores import ClipFeatures, Paths, ProbeFeatures, Scores, picture_features
from clipgraft.evaluation.variants import CHANCE, EMPTY, RANDOM, REAL, SHUFFLED, TEACHER, TITLES, Drawn
from clipgraft.generation.metadata import save_png
from clipgraft.models.weights import module_sha256

DISTANCES = {"cmmd": cmmd, "kid": kid, "fid": fid}
NUM_NEAREST, THUMBNAIL_SIZE = 12, 256
OF_THE_PROMPT = ("state_error", "seed_diversity")
"""Metrics that no single picture has."""
WORKED_OUT = "no interval: chance is worked out"
STATUSES = ("ok", "failed_nan", "failed_black", "blocked")

Rows = list[dict[str, Any]]


class Distribution(NamedTuple):
    """Features of one extractor: of pictures by column and prompt, and of the reference."""

    generated: dict[str, list[Tensor]]
    reference: Tensor
    """(M, D): photographs of the test split that no prompt describes."""


class Measured(NamedTuple):
    """All that was drawn and measured, before it is summed up."""

    drawn: Drawn
    paths: dict[str, Paths]
    scores: Scores
    nearest: dict[str, np.ndarray]
    """By column the row (P, K) of each picture's nearest training image."""
    scorer: ClipFeatures
    scorer_name: str
    tuned_from_scorer: list[str]
    """Columns whose CLIP was tuned from the scorer, as the recipes beside it say."""
    extractor: str
    """Of the features that KID and FID are taken over."""
    distributions: dict[str, Distribution]
    gallery: tuple[CaptionedImage, ...]
    """The test split, copies of a photograph as one."""
    retrieval: dict[str, tuple[Tensor, Tensor]]
    """By column the embeds of the gallery's captions and images."""

    @property
    def columns(self) -> list[str]:
        """Names in the order in which they are shown."""
        known = [TEACHER, *self.drawn.measured, REAL, EMPTY, SHUFFLED, RANDOM]
        there = [column for column in known if column in self.paths or column == SHUFFLED]
        return [*there, CHANCE] if self.retrieval else there

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Columns to take differences of: each graft and the next; the last one and its bounds."""
        grafts = list(self.drawn.measured)
        bounds = [(bound, grafts[-1]) for bound in (RANDOM, TEACHER) if grafts and bound in self.paths]
        return [*pairwise(grafts), *bounds]


def compare_distributions(
    drawn: Drawn, paths: Mapping[str, Paths], scorer: ClipFeatures, probe: ProbeFeatures | None
) -> dict[str, Distribution]:
    """Take features of the held-out captions' pictures and of other photographs; empty without any."""
    ids = members(drawn.prompts, HELD_OUT)
    described = {image.image_id for prompt in drawn.prompts if (image := prompt.image)}
    reference = [image for image in drawn.images.test if image.image_id not in described]
    if not ids or not reference:
        return {}
    # One a prompt, as photographs are: of more pictures a biased distance would be smaller.
    own = {column: [pictures[index][:1] for index in ids] for column, pictures in paths.items()}
    extractor = probe or scorer
    by_clip, others = scorer.of_images(reference), extractor.of_pictures([image.path for image in reference])
    size = by_clip.shape[1], others.shape[1]
    embeds = {name: picture_features(scorer.of_pictures, each, size[0]) for name, each in own.items()}
    features = {name: picture_features(extractor.of_pictures, each, size[1]) for name, each in own.items()}
    kid_and_fid = Distribution(features, others)
    return {"cmmd": Distribution(embeds, by_clip), "kid": kid_and_fid, "fid": kid_and_fid}


def build_record(measured: Measured, settings: EvaluateSettings) -> dict[str, Any]:
    """Sum everything up: all keys of evaluation.json but `environment` and `seconds`."""
    drawn, scorer = measured.drawn, measured.scorer
    dtype = getattr(torch, drawn.drawing["text_encoder_dtype"])
    note = independence_note(
        module_sha256(deepcopy(scorer.clip.model.text_model).to(dtype)),
        drawn.tower_sums,
        measured.tuned_from_scorer,
    )
    figures, differences = _means(measured)
    notes = [note] if note else []
    for rows in (_distances(measured, force=settings.force), _recalls(measured)):
        figures, differences, notes = figures + rows[0], differences + rows[1], notes + rows[2]
    if settings.num_images_per_prompt == 1:
        notes.append("Diversity between seeds needs --set evaluate.num_images_per_prompt=2 or more.")
    sets = describe_sets(drawn.prompts)
    counts = _counts(measured, [each["name"] for each in sets])
    if measured.retrieval:
        sets.append(_test_split(measured))
    used = list(dict.fromkeys(row["metric"] for row in figures))
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "settings": settings.model_dump(exclude={"prompts", "scorer", "scorer_revision"})
        | drawn.drawing
        | {
            "resize_filter": scorer.resize_filter,
            "scorer": {"name": measured.scorer_name, "sha256": scorer.sum, "is_independent": not note},
            "feature_extractor": {"name": measured.extractor, "size": _feature_size(measured)},
        },
        "data": {**drawn.images.record, "num_reference_images": _num_reference(measured)},
        "columns": [
            {"name": name, "role": _role(measured, name), "title": TITLES.get(name, f"the graft {name}")}
            | {"sha256": drawn.encoder_sums.get(name, "")}
            for name in measured.columns
        ],
        "metrics": {
            name: METRICS[name]._asdict() | {"extractor": _extractor(measured, name)} for name in used
        },
        "prompt_sets": sets,
        "prompts": [
            {"id": index, "prompt": prompt.text, "image_id": prompt.image.image_id if prompt.image else None}
            | {"sets": list(prompt.sets)}
            for index, prompt in enumerate(drawn.prompts)
        ],
        "figures": figures,
        "differences": differences,
        "counts": counts,
        "pictures": _pictures(measured),
        "nearest_training_images": _nearest(measured),
        "notes": notes,
    }


def _means(measured: Measured) -> tuple[Rows, Rows]:
    figures, differences = [], []
    for each in describe_sets(measured.drawn.prompts):
        name, ids = each["name"], members(measured.drawn.prompts, each["name"])
        for metric, by_column in measured.scores.items():
            own = {column: by_column[column][ids] for column in measured.columns if column in by_column}
            own = {column: values for column, values in own.items() if np.isfinite(values).any()}
            figures += [mean_row(metric, name, column, values) for column, values in own.items()]
            differences += [
                difference_row(metric, name, pair, (own[pair[0]], own[pair[1]]))
                for pair in measured.pairs
                if pair[0] in own and pair[1] in own
            ]
    return figures, differences


def _distances(measured: Measured, *, force: bool) -> tuple[Rows, Rows, list[str]]:
    figures: Rows = []
    differences: Rows = []
    notes: list[str] = []
    for metric, features in measured.distributions.items():
        num_real, size = features.reference.shape
        nums = {
            column: sum(map(len, features.generated[column]))
            for column in measured.columns
            if column in features.generated
        }
        lacks = {column: shortage(metric, num, num_real, size, force=force) for column, num in nums.items()}
        notes += _lack_notes(lacks)
        figures += [
            absent_row(metric, HELD_OUT, column, nums[column], lack) for column, lack in lacks.items() if lack
        ]
        taken = {column: features.generated[column] for column, lack in lacks.items() if not lack}
        worth_little = {
            column: f"{metric.upper()} is worth little of {nums[column]} generated, {num_real} real pictures"
            for column in taken
            if shortage(metric, nums[column], num_real, size)
        }

        def distance(
            parts: list[Tensor], metric: str = metric, reference: Tensor = features.reference
        ) -> float:
            return DISTANCES[metric](torch.cat(parts), reference)

        rows = distribution_rows(metric, HELD_OUT, taken, distance, measured.pairs, worth_little)
        figures, differences = figures + rows[0], differences + rows[1]
    if any(row["metric"] in ("kid", "fid") and row["value"] is not None for row in figures):
        notes.append(
            f"KID and FID are taken over {measured.extractor}, not Inception: compare them within this "
            "evaluation, not with published figures."
        )
    return figures, differences, notes


def _lack_notes(lacks: Mapping[str, str]) -> list[str]:
    """Say once what is lacking, and of which columns where not of all."""
    notes = []
    for lack in dict.fromkeys(lack for lack in lacks.values() if lack):
        columns = [column for column, own in lacks.items() if own == lack]
        of_whom = "" if len(columns) == len(lacks) else f" ({', '.join(columns)})"
        notes.append(f"{lack}{of_whom}.")
    return notes


def _recalls(measured: Measured) -> tuple[Rows, Rows, list[str]]:
    """Recall of CLIP before and after on the test split; an image is resampled with all of its captions."""
    images = measured.gallery
    counts = np.array([len(image.captions) for image in images])
    index = torch.arange(len(images)).repeat_interleave(torch.from_numpy(counts)) if len(images) else None
    values: dict[str, dict[str, np.ndarray]] = {}
    figures = []
    for column, (texts, pictures) in measured.retrieval.items():
        for direction, ranks in retrieval_ranks(texts, pictures, index).items():  # type: ignore[arg-type]
            first = ranks[:, 0].numpy()
            found = {f"{direction}_recall@{k}": (first < k).astype(float) for k in RECALL_AT}
            found[f"{direction}_map"] = average_precision(ranks).numpy()
            for metric, queries in found.items():
                values.setdefault(metric, {})[column] = _by_image(queries, counts)
            median = {
                "value": 1 + float(np.median(first)),
                "num": len(first),
                "note": "no interval is taken of a median",
            }
            figures.append(absent_row(f"{direction}_median_rank", TEST_SPLIT, column, 0, "") | median)
    differences = []
    for metric, by_column in values.items():
        weights = counts if metric.startswith("text_to_image") else None
        figures += [mean_row(metric, TEST_SPLIT, column, own, weights) for column, own in by_column.items()]
        differences += [
            difference_row(metric, TEST_SPLIT, pair, (by_column[pair[0]], by_column[pair[1]]), weights)
            for pair in measured.pairs
            if pair[0] in by_column and pair[1] in by_column
        ]
    if values:
        figures += _chance(counts)
    return figures, differences, []


def _chance(counts: np.ndarray) -> Rows:
    """Recall of embeds that know nothing: any of c captions among the first k of M, any image among the N."""
    num_images, num_captions = len(counts), int(counts.sum())
    rows = []
    for k in RECALL_AT:
        missed = [comb(num_captions - int(c), k) / comb(num_captions, k) for c in counts if num_captions >= k]
        for direction, value in (
            ("text_to_image", min(1.0, k / num_images)),
            ("image_to_text", 1 - float(np.mean(missed)) if missed else 1.0),
        ):
            row = absent_row(f"{direction}_recall@{k}", TEST_SPLIT, CHANCE, num_images, WORKED_OUT)
            rows.append(row | {"value": value})
    return rows


def _by_image(queries: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of each image's queries, (N, 1); a query of images is its own mean."""
    if len(queries) == len(counts):
        return queries[:, None]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return (np.add.reduceat(queries, starts) / counts)[:, None]


def _pictures(measured: Measured) -> Rows:
    """One row a picture, with those scores that are its own."""
    places: dict[tuple[str, int], int] = {}
    rows = []
    for row in measured.drawn.rows:
        column, prompt = row["column"], row["prompt_id"]
        seed = places[column, prompt] = places.get((column, prompt), -1) + 1
        scores = {
            metric: float(by_column[column][prompt, seed])
            for metric, by_column in measured.scores.items()
            if column in by_column and not metric.startswith(OF_THE_PROMPT)
        }
        rows.append(row | {"scores": {name: value for name, value in scores.items() if np.isfinite(value)}})
    return rows


def _counts(measured: Measured, prompt_sets: Sequence[str]) -> Rows:
    rows = []
    for column in measured.drawn.paths:
        for name in prompt_sets:
            ids = set(members(measured.drawn.prompts, name))
            found = [
                row["status"]
                for row in measured.drawn.rows
                if row["column"] == column and row["prompt_id"] in ids
            ]
            counted = {status: found.count(status) for status in STATUSES}
            rows.append({"column": column, "prompt_set": name, "num_pictures": len(found)} | counted)
    return rows


def _nearest(measured: Measured) -> Rows:
    """The grafts' pictures that lie nearest to a training photograph, with small copies of these."""
    cosines = measured.scores.get("nearest_training_cosine", {})
    rows = [
        {key: row[key] for key in ("column", "prompt_id", "seed", "file")}
        | {"cosine": row["scores"]["nearest_training_cosine"]}
        for row in _pictures(measured)
        if row["column"] in measured.drawn.measured and "nearest_training_cosine" in row["scores"]
    ]
    rows = sorted(rows, key=lambda row: -row["cosine"])[:NUM_NEAREST]
    for number, row in enumerate(rows):
        own = cosines[row["column"]][row["prompt_id"]]
        place = int(np.flatnonzero(own == np.float32(row["cosine"]))[0])
        image = measured.drawn.images.train[int(measured.nearest[row["column"]][row["prompt_id"], place])]
        file = f"nearest/{number:02d}.png"
        _save_thumbnail(image, measured.drawn.folder / file)
        row |= {"image_id": image.image_id, "training_file": file}
    return rows


def _save_thumbnail(image: CaptionedImage, path: Path) -> None:
    picture = open_image(image.path)
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, path, None)


def _test_split(measured: Measured) -> dict[str, Any]:
    texts = next(iter(measured.retrieval.values()))[0]
    title = f"retrieval over the test split, {len(measured.gallery)} images"
    return {"name": TEST_SPLIT, "title": title, "domain": "in", "part_of": None, "num_prompts": len(texts)}


def _num_reference(measured: Measured) -> int:
    return len(next(iter(measured.distributions.values())).reference) if measured.distributions else 0


def _feature_size(measured: Measured) -> int | None:
    return measured.distributions["kid"].reference.shape[1] if measured.distributions else None


def _role(measured: Measured, column: str) -> str:
    if column in measured.drawn.measured:
        return "measured"
    return "ceiling" if column in (TEACHER, REAL) else "floor"


def _extractor(measured: Measured, metric: str) -> str:
    if metric.startswith("prompt_fidelity"):
        return ProbeFeatures.name
    if metric in ("kid", "fid"):
        return measured.extractor
    by_pixels = metric in ("same_seed_psnr", "same_seed_ssim") or metric.startswith("state_error")
    return "" if by_pixels or "_to_text_" in metric or "_to_image_" in metric else measured.scorer_name
