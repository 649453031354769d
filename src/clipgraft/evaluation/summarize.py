"""From scores and features to an `Evaluation`."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import open_image
from clipgraft.evaluation.features import ClipFeatures, ProbeFeatures
from clipgraft.evaluation.figures import METRICS, distances, mean_figure, paired_difference
from clipgraft.evaluation.metrics.clipscore import independence_note
from clipgraft.evaluation.metrics.distribution import cmmd, fid, kid, shortage
from clipgraft.evaluation.metrics.retrieval import RECALL_AT, average_precision, retrieval_ranks
from clipgraft.evaluation.prompt_sets import HELD_OUT, TEST_SPLIT, describe_sets, members
from clipgraft.evaluation.results import (
    CHANCE,
    EMPTY,
    RANDOM,
    REAL,
    SHUFFLED,
    STATUSES,
    TEACHER,
    Counts,
    Difference,
    Evaluation,
    FeatureExtractor,
    Figure,
    NearestImage,
    Prompt,
    PromptSet,
    ScoredImage,
    Scorer,
    Variant,
)
from clipgraft.evaluation.scores import Paths, Scores, image_features
from clipgraft.evaluation.variants import TITLES, Variants
from clipgraft.generation.image_encoding import write_image
from clipgraft.models.weights import module_sha256

DISTANCES = {"cmmd": cmmd, "kid": kid, "fid": fid}
NUM_NEAREST, THUMBNAIL_SIZE = 12, 256
OF_THE_PROMPT = ("state_error", "seed_diversity")
"""Prefixes of metrics per prompt, not per image."""
COMPUTED = "no interval: chance is computed exactly"


class Distribution(NamedTuple):
    """Features of generated and reference images by one extractor."""

    generated: dict[str, list[Tensor]]
    reference: Tensor
    """(M, D): test photographs not described by a prompt."""


class Measured(NamedTuple):
    """All scores and features of an evaluation."""

    variants: Variants
    paths: dict[str, Paths]
    """By variant, including real images."""
    scores: Scores
    nearest: dict[str, np.ndarray]
    """Variant -> row (P, K) of each image's nearest training image."""
    scorer: ClipFeatures
    scorer_name: str
    tuned_from_scorer: list[str]
    """Variants whose CLIP was tuned from the scorer."""
    extractor: str
    """Name of the feature extractor of KID and FID."""
    distributions: dict[str, Distribution]
    gallery: tuple[CaptionedImage, ...]
    """The test split, with copies of a photograph merged."""
    retrieval: dict[str, tuple[Tensor, Tensor]]
    """Variant -> embeds of the gallery's captions and images."""

    @property
    def names(self) -> list[str]:
        """Variants in display order."""
        known = [TEACHER, *self.variants.grafts, REAL, EMPTY, SHUFFLED, RANDOM]
        there = [name for name in known if name in self.paths or name == SHUFFLED]
        return [*there, CHANCE] if self.retrieval else there

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Baseline-variant pairs: consecutive grafts; the last one and its bounds."""
        grafts = self.variants.grafts
        bounds = [(bound, grafts[-1]) for bound in (RANDOM, TEACHER) if grafts and bound in self.paths]
        return [*pairwise(grafts), *bounds]


def compare_distributions(
    variants: Variants, paths: Mapping[str, Paths], scorer: ClipFeatures, probe: ProbeFeatures | None
) -> dict[str, Distribution]:
    """Extract features of held-out captions' images and of reference photographs."""
    ids = members(variants.prompts, HELD_OUT)
    described = {image.image_id for prompt in variants.prompts if (image := prompt.image)}
    reference = [image for image in variants.images.test if image.image_id not in described]
    if not ids or not reference:
        return {}
    # One image per prompt, as for photographs: with more, a biased distance would be smaller.
    own = {name: [images[index][:1] for index in ids] for name, images in paths.items()}
    extractor = probe or scorer
    by_clip, others = scorer.of_images(reference), extractor.of_files([image.file for image in reference])
    size = by_clip.shape[1], others.shape[1]
    embeds = {name: image_features(scorer.of_files, each, size[0]) for name, each in own.items()}
    features = {name: image_features(extractor.of_files, each, size[1]) for name, each in own.items()}
    kid_and_fid = Distribution(features, others)
    return {"cmmd": Distribution(embeds, by_clip), "kid": kid_and_fid, "fid": kid_and_fid}


def summarize_evaluation(measured: Measured) -> Evaluation:
    """Return the evaluation without environment and seconds."""
    variants, scorer = measured.variants, measured.scorer
    settings, data = variants.sampling, variants.images.record
    dtype = getattr(torch, settings.text_encoder_dtype)
    note = independence_note(
        module_sha256(deepcopy(scorer.clip.model.text_model).to(dtype)),
        variants.tower_checksums,
        measured.tuned_from_scorer,
    )
    parts = [_means(measured), _distances(measured), _recalls(measured)]
    figures = [row for part in parts for row in part[0]]
    notes = [*([note] if note else []), *(text for part in parts for text in part[2])]
    if settings.num_images_per_prompt == 1:
        notes.append("Diversity between seeds needs --set evaluate.num_images_per_prompt=2 or more.")
    sets = describe_sets(variants.prompts)
    features = measured.distributions.get("kid")
    extractor = FeatureExtractor(
        name=measured.extractor, size=features.reference.shape[1] if features else None
    )
    images = list(_scored_rows(measured))
    return Evaluation(
        settings=settings.model_copy(
            update={
                "resize_filter": scorer.resize_filter,
                "scorer": Scorer(name=measured.scorer_name, sha256=scorer.checksum, is_independent=not note),
                "feature_extractor": extractor,
            }
        ),
        data=data.model_copy(update={"num_reference_images": len(features.reference) if features else 0}),
        variants=[_describe(measured, name) for name in measured.names],
        metrics={
            name: METRICS[name].model_copy(update={"extractor": _extractor(measured, name)})
            for name in dict.fromkeys(row.metric for row in figures)
        },
        prompt_sets=[*sets, *([_test_split(measured)] if measured.retrieval else [])],
        prompts=[
            Prompt(
                id=index,
                prompt=prompt.text,
                image_id=prompt.image.image_id if prompt.image else None,
                sets=list(prompt.sets),
            )
            for index, prompt in enumerate(variants.prompts)
        ],
        figures=figures,
        differences=[row for part in parts for row in part[1]],
        counts=[_count(measured, name, each.name) for name in variants.paths for each in sets],
        images=images,
        nearest_training_images=_nearest(measured, images),
        notes=notes,
    )


Rows = tuple[list[Figure], list[Difference], list[str]]
"""Figures, differences, and notes on them."""


def _means(measured: Measured) -> Rows:
    figures, differences = [], []
    for each in describe_sets(measured.variants.prompts):
        ids = members(measured.variants.prompts, each.name)
        for metric, by_variant in measured.scores.items():
            own = {name: by_variant[name][ids] for name in measured.names if name in by_variant}
            own = {name: values for name, values in own.items() if np.isfinite(values).any()}
            figures += [mean_figure(metric, each.name, name, values) for name, values in own.items()]
            differences += [
                paired_difference(metric, each.name, pair, (own[pair[0]], own[pair[1]]))
                for pair in measured.pairs
                if pair[0] in own and pair[1] in own
            ]
    return figures, differences, []


def _distances(measured: Measured) -> Rows:
    force = measured.variants.settings.force
    figures: list[Figure] = []
    differences: list[Difference] = []
    notes: list[str] = []
    for metric, features in measured.distributions.items():
        num_real, size = features.reference.shape
        nums = {
            name: sum(map(len, features.generated[name]))
            for name in measured.names
            if name in features.generated
        }
        lacks = {name: shortage(metric, num, num_real, size, force=force) for name, num in nums.items()}
        notes += _lack_notes(lacks)
        figures += [
            Figure(metric=metric, prompt_set=HELD_OUT, variant=name, num=nums[name], note=lack)
            for name, lack in lacks.items()
            if lack
        ]
        taken = {name: features.generated[name] for name, lack in lacks.items() if not lack}
        unreliable = {
            name: f"{metric.upper()} over {nums[name]} generated and {num_real} real images is unreliable"
            for name in taken
            if shortage(metric, nums[name], num_real, size)
        }
        rows = distances(
            metric,
            HELD_OUT,
            taken,
            partial(_distance, metric, features.reference),
            measured.pairs,
            unreliable,
        )
        figures, differences = figures + rows[0], differences + rows[1]
    if any(row.metric in ("kid", "fid") and row.value is not None for row in figures):
        notes.append(
            f"KID and FID are taken over features of {measured.extractor}, not Inception's: compare them "
            "within this evaluation, not with published figures."
        )
    return figures, differences, notes


def _distance(metric: str, reference: Tensor, parts: Sequence[Tensor]) -> float:
    return DISTANCES[metric](torch.cat(list(parts)), reference)


def _lack_notes(lacks: Mapping[str, str]) -> list[str]:
    """Note each lack once, with its variants unless it concerns all."""
    notes = []
    for lack in dict.fromkeys(lack for lack in lacks.values() if lack):
        names = [name for name, own in lacks.items() if own == lack]
        of_whom = "" if len(names) == len(lacks) else f" ({', '.join(names)})"
        notes.append(f"{lack}{of_whom}.")
    return notes


def _recalls(measured: Measured) -> Rows:
    """Measure retrieval by CLIP before and after on the test split."""
    images = measured.gallery
    counts = np.array([len(image.captions) for image in images])
    index = torch.arange(len(images)).repeat_interleave(torch.from_numpy(counts)) if len(images) else None
    values: dict[str, dict[str, np.ndarray]] = {}
    figures: list[Figure] = []
    for name, (texts, embeds) in measured.retrieval.items():
        for direction, ranks in retrieval_ranks(texts, embeds, index).items():  # type: ignore[arg-type]
            first = ranks[:, 0].numpy()
            found = {f"{direction}_recall@{k}": (first < k).astype(float) for k in RECALL_AT}
            found[f"{direction}_map"] = average_precision(ranks).numpy()
            for metric, queries in found.items():
                values.setdefault(metric, {})[name] = _by_image(queries, counts)
            figures.append(
                Figure(
                    metric=f"{direction}_median_rank",
                    prompt_set=TEST_SPLIT,
                    variant=name,
                    value=1 + float(np.median(first)),
                    num=len(first),
                    note="no interval is taken of a median",
                )
            )
    differences = []
    for metric, by_variant in values.items():
        weights = counts if metric.startswith("text_to_image") else None
        figures += [mean_figure(metric, TEST_SPLIT, name, own, weights) for name, own in by_variant.items()]
        differences += [
            paired_difference(metric, TEST_SPLIT, pair, (by_variant[pair[0]], by_variant[pair[1]]), weights)
            for pair in measured.pairs
            if pair[0] in by_variant and pair[1] in by_variant
        ]
    return figures + (list(_chance(counts)) if values else []), differences, []


def _chance(counts: np.ndarray) -> Iterator[Figure]:
    """Yield the recall of random embeds.

    A caption finds its image among the first k of N, an image any of its c captions among the first k of M.
    """
    num_images, num_captions = len(counts), int(counts.sum())
    for k in RECALL_AT:
        missed = [comb(num_captions - int(c), k) / comb(num_captions, k) for c in counts if num_captions >= k]
        for direction, value in (
            ("text_to_image", min(1.0, k / num_images)),
            ("image_to_text", 1 - float(np.mean(missed)) if missed else 1.0),
        ):
            yield Figure(
                metric=f"{direction}_recall@{k}",
                prompt_set=TEST_SPLIT,
                variant=CHANCE,
                value=value,
                num=num_images,
                note=COMPUTED,
            )


def _by_image(queries: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over each image's queries, (N, 1): images are resampled, not captions."""
    if len(queries) == len(counts):
        return queries[:, None]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return (np.add.reduceat(queries, starts) / counts)[:, None]


def _scored_rows(measured: Measured) -> Iterator[ScoredImage]:
    places: dict[tuple[str, int], int] = {}
    for row in measured.variants.rows:
        key = row.variant, row.prompt_id
        seed = places[key] = places.get(key, -1) + 1
        scores = {
            metric: float(by_variant[row.variant][row.prompt_id, seed])
            for metric, by_variant in measured.scores.items()
            if row.variant in by_variant and not metric.startswith(OF_THE_PROMPT)
        }
        finite = {name: value for name, value in scores.items() if np.isfinite(value)}
        yield row.model_copy(update={"scores": finite})


def _count(measured: Measured, name: str, prompt_set: str) -> Counts:
    ids = set(members(measured.variants.prompts, prompt_set))
    found = [row.status for row in measured.variants.rows if row.variant == name and row.prompt_id in ids]
    counted = {status: found.count(status) for status in STATUSES}
    return Counts(variant=name, prompt_set=prompt_set, num_images=len(found), **counted)


def _nearest(measured: Measured, images: list[ScoredImage]) -> list[NearestImage]:
    """Find the images nearest to training photographs; save thumbnails of these."""
    metric, grafts = "nearest_training_cosine", measured.variants.grafts
    rows = [row for row in images if row.variant in grafts and metric in row.scores]
    found = []
    for number, row in enumerate(sorted(rows, key=lambda row: -row.scores[metric])[:NUM_NEAREST]):
        cosine = row.scores[metric]
        own = measured.scores[metric][row.variant][row.prompt_id]
        place = int(np.flatnonzero(own == np.float32(cosine))[0])
        image = measured.variants.images.train[int(measured.nearest[row.variant][row.prompt_id, place])]
        file = f"nearest/{number:02d}.png"
        _save_thumbnail(image, measured.variants.folder / file)
        found.append(
            NearestImage(
                **row.model_dump(include={"variant", "prompt_id", "seed", "file"}),
                image_id=image.image_id,
                training_file=file,
                cosine=cosine,
            )
        )
    return found


def _save_thumbnail(image: CaptionedImage, path: Path) -> None:
    thumbnail = open_image(image.file)
    thumbnail.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(thumbnail, path)


def _test_split(measured: Measured) -> PromptSet:
    texts = next(iter(measured.retrieval.values()))[0]
    title = f"retrieval over the test split, {len(measured.gallery)} images"
    return PromptSet(name=TEST_SPLIT, title=title, domain="in", num_prompts=len(texts))


def _describe(measured: Measured, name: str) -> Variant:
    is_measured = name in measured.variants.grafts
    return Variant(
        name=name,
        role="measured" if is_measured else "ceiling" if name in (TEACHER, REAL) else "floor",
        title=TITLES.get(name, f"the graft {name}"),
        sha256=measured.variants.encoder_checksums.get(name, ""),
    )


def _extractor(measured: Measured, metric: str) -> str:
    if metric.startswith("prompt_fidelity"):
        return ProbeFeatures.name
    if metric in ("kid", "fid"):
        return measured.extractor
    by_pixels = metric in ("same_seed_psnr", "same_seed_ssim") or metric.startswith("state_error")
    return "" if by_pixels or "_to_text_" in metric or "_to_image_" in metric else measured.scorer_name
