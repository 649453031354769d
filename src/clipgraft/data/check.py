"""Check a dataset before training: counts, samples and findings."""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, islice
from typing import Any

from clipgraft.console import track
from clipgraft.data.caption_check import CaptionCheck, Lengths
from clipgraft.data.caption_languages import can_tell_languages
from clipgraft.data.dataset import (
    CONTEXT_LENGTH,
    SPLITS,
    CaptionDataset,
    CaptionedImage,
    Split,
    TrainingImages,
)
from clipgraft.data.findings import Finding
from clipgraft.data.mixed import MixedImages
from clipgraft.data.photograph_check import PhotographCheck
from clipgraft.errors import printable, some_of

NUM_SAMPLES = 5
NUM_EXAMPLES = 3
"""Names listed per reason for exclusion."""
NUM_LEAKS_SAID = 2
"""Photographs in several splits named by fine-tuning."""
NUM_WITH_BAR = 1000
"""Images from which a bar is shown."""
NUM_AT_ONCE = 64
"""Images decoded, and captions tokenized, at a time."""


@dataclass(frozen=True, slots=True)
class ExcludedGroup:
    """Images or captions excluded for one reason."""

    kind: str
    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """Measurements of a dataset's included images and captions."""

    root: str
    format: str
    files: dict[str, str]
    split_rule: str
    """What decides the split of each image."""
    notes: tuple[str, ...]
    fingerprint: str
    counts: dict[Split, dict[str, int]]
    """Split -> number of `images` and `captions`; captions that were not read are not counted."""
    excluded: tuple[ExcludedGroup, ...]
    samples: tuple[CaptionedImage, ...]
    """Spread evenly over the dataset."""
    captions_per_image: dict[int, int]
    """Number of captions -> number of such images."""
    caption_words: Lengths
    captions_per_length: dict[int, int]
    """Number of words -> number of such captions."""
    vocabulary_size: int
    """Different words, ignoring case and punctuation."""
    caption_tokens: Lengths | None
    """With BOS and EOS; None without a tokenizer."""
    num_over_context_length: int | None
    """Captions of over 77 tokens, to be truncated; None without a tokenizer."""
    num_images_read: int
    """Photographs opened; 0 without `read_images`."""
    unreadable: dict[str, str] | None
    """Image id -> reason, of the first 10,000; None without `read_images`."""
    damaged: dict[str, str]
    """Image id -> reason, of photographs skipped when the dataset was loaded."""
    duplicates: tuple[tuple[str, ...], ...]
    """Groups of image ids with byte-identical files."""
    leakage: tuple[dict[str, Split], ...]
    """Equal files in different splits: image id -> split."""
    near_duplicates: tuple[tuple[str, ...], ...] | None
    """Groups of image ids that look alike; None without `read_images`."""
    findings: tuple[Finding, ...]
    """Everything odd, with what it does to training."""
    not_measured: tuple[str, ...]
    """What was left out for want of a package, in words."""

    def to_json(self) -> str:
        """Return the measurements as JSON; null = not measured."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str)


def check_dataset(
    dataset: CaptionDataset,
    tokenizer: Callable[..., Any] | None = None,
    *,
    read_images: bool = True,
    num_samples: int = NUM_SAMPLES,
    on_image: Callable[[], None] = lambda: None,
) -> DatasetCheck:
    """Measure a dataset in one pass; damaged photographs are listed, not raised.

    Some 40 bytes an image and 12 a caption stay in memory.

    Args:
        dataset: The dataset.
        tokenizer: A transformers tokenizer, to measure captions in tokens.
        read_images: Pass over images that are not in memory too, decode every photograph (about 4 ms each for
            Flickr8k's) to find damaged ones and those that look alike, and detect the languages of captions.
            Bytes of images in memory are compared in any case.
        num_samples: Number of `samples`.
        on_image: Called after each photograph, for progress.
    """
    scan = _Scan(num_images(dataset), read_images, on_image)
    scan.add(iter_images(dataset) if read_images else dataset.images, tokenizer)
    captions, photographs, tokens = scan.captions, scan.photographs, scan.tokens
    equal, near = photographs.duplicates(), photographs.near_duplicates()
    shown = _spread(scan.num_images, num_samples)
    lookup = _Lookup(dataset, is_held=dataset.streamed is None or not read_images)
    found = lookup({*shown, *(number for group in (*equal, *(near or ())) for number in group)})
    languages = [captions.languages()] if read_images and can_tell_languages() else []
    findings = [*photographs.findings(lookup), *captions.findings(lookup, photographs), *languages]
    named = [_named(group, found) for group in equal]
    return DatasetCheck(
        root=str(dataset.root),
        format=dataset.format,
        files=dataset.files,
        split_rule=str(dataset.split_rule),
        notes=dataset.notes,
        fingerprint=dataset.fingerprint,
        counts=scan.counts | _count_unread(dataset, read_images),
        excluded=_group_excluded(dataset),
        samples=tuple(found[number] for number in shown),
        captions_per_image=dict(sorted(captions.counts.items())),
        caption_words=Lengths.of(captions.lengths),
        captions_per_length=dict(sorted(captions.lengths.items())),
        vocabulary_size=captions.vocabulary_size,
        caption_tokens=Lengths.of(tokens) if tokens else None,
        num_over_context_length=sum(tokens[n] for n in tokens if n > CONTEXT_LENGTH) if tokens else None,
        num_images_read=scan.num_images if read_images else 0,
        unreadable=photographs.unreadable if read_images else None,
        damaged=dict(dataset.damaged),
        duplicates=tuple(map(tuple, named)),
        leakage=tuple(group for group in named if len(set(group.values())) > 1),
        near_duplicates=None if near is None else tuple(tuple(_named(group, found)) for group in near),
        findings=tuple(filter(None, findings)),
        not_measured=_not_measured() if read_images else (),
    )


def check_with_progress(
    dataset: CaptionDataset, tokenizer: Callable[..., Any] | None = None, *, num_samples: int | None = None
) -> DatasetCheck:
    """Measure a dataset as `check_dataset`, with a bar if that takes seconds."""
    total, num_samples = num_images(dataset), num_samples or NUM_SAMPLES
    if total < NUM_WITH_BAR:
        return check_dataset(dataset, tokenizer, num_samples=num_samples)
    done = count(1)
    with track("checking images", total) as update:
        return check_dataset(
            dataset, tokenizer, num_samples=num_samples, on_image=lambda: update(next(done), "")
        )


def leakage_note(check: DatasetCheck) -> str:
    """Return a warning about photographs in several splits, else ""."""
    if not check.leakage:
        return ""
    shown = some_of([*map(with_splits, check.leakage)], NUM_LEAKS_SAID)
    return printable(
        f"{len(check.leakage):,} photographs lie in more than one split, byte for byte ({shown}); figures of "
        "val and test are too good by them: leave each in one split (`clipgraft data check` lists them, and "
        "with --fix keeps each in one)"
    )


def with_splits(group: Mapping[str, Split]) -> str:
    """Return images and their splits: `a.jpg (train) = b.jpg (test)`."""
    return " = ".join(f"{name} ({split})" for name, split in group.items())


class _Scan:
    """Captions, photographs and tokens measured in one pass."""

    def __init__(self, num_images: int, read_images: bool, on_image: Callable[[], None]):
        self.captions = CaptionCheck(num_images)
        self.photographs = PhotographCheck(decode=read_images, on_image=on_image)
        self.tokens: Counter[int] = Counter()
        self.num_images = 0
        self.counts: dict[Split, dict[str, int]] = {split: {"images": 0, "captions": 0} for split in SPLITS}

    def add(self, images: Iterable[CaptionedImage], tokenizer: Callable[..., Any] | None) -> None:
        """Measure all images, a few at a time."""
        following = iter(images)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while part := list(islice(following, NUM_AT_ONCE)):
                self._add(part, tokenizer)
                self.photographs.add(part, pool)

    def _add(self, images: Sequence[CaptionedImage], tokenizer: Callable[..., Any] | None) -> None:
        for image in images:
            self.captions.add(image)
            self.counts[image.split]["images"] += 1
            self.counts[image.split]["captions"] += len(image.captions)
        self.num_images += len(images)
        if tokenizer is not None:
            texts = [text for image in images for text in image.captions]
            self.tokens.update(_count_tokens(texts, tokenizer))


def num_images(dataset: CaptionDataset) -> int:
    """Return the number of images; a source of many states its own."""
    streamed = _streamed(dataset)
    return len(dataset.images) + (0 if streamed is None else len(streamed))


def iter_images(dataset: CaptionDataset) -> Iterator[CaptionedImage]:
    """Yield all images in one order, those not in memory last."""
    yield from dataset.images
    streamed = _streamed(dataset)
    if streamed is not None:
        yield from (image for _, image in streamed.epoch(0, 0))


def _streamed(dataset: CaptionDataset) -> TrainingImages | None:
    """Return training images not in memory, of several sources each once."""
    return dataset.streamed.unweighted if isinstance(dataset.streamed, MixedImages) else dataset.streamed


def _count_tokens(captions: Sequence[str], tokenizer: Callable[..., Any]) -> list[int]:
    from clipgraft.data.transforms import encode_whole  # the only part in need of torch

    return [len(ids) for ids in encode_whole(captions, tokenizer)]


class _Lookup:
    """Finds images by number, in memory or by another pass."""

    def __init__(self, dataset: CaptionDataset, is_held: bool):
        self._dataset, self._is_held = dataset, is_held
        self._known: dict[int, CaptionedImage] = {}

    def __call__(self, numbers: Collection[int]) -> dict[int, CaptionedImage]:
        if self._is_held:
            return {number: self._dataset.images[number] for number in numbers}
        missing = set(numbers) - self._known.keys()
        images = islice(enumerate(iter_images(self._dataset)), max(missing, default=-1) + 1)
        self._known |= {number: image for number, image in images if number in missing}
        return {number: self._known[number] for number in numbers}


def _count_unread(dataset: CaptionDataset, read_images: bool) -> dict[Split, dict[str, int]]:
    """Count training images that were not passed over."""
    is_unread = dataset.streamed is not None and not read_images
    return {"train": {"images": num_images(dataset) - len(dataset.images)}} if is_unread else {}


def _named(group: Sequence[int], found: Mapping[int, CaptionedImage]) -> dict[str, Split]:
    """Return a group of numbers as image id -> split."""
    return {found[number].image_id: found[number].split for number in group}


def _group_excluded(dataset: CaptionDataset) -> tuple[ExcludedGroup, ...]:
    names: dict[tuple[str, str], list[str]] = {}
    for item in dataset.excluded:
        names.setdefault((item.kind, item.reason), []).append(item.name)
    return tuple(
        ExcludedGroup(kind, reason, len(found), tuple(found[:NUM_EXAMPLES]))
        for (kind, reason), found in sorted(names.items())
    )


def _spread(num_images: int, number: int) -> list[int]:
    number = min(number, num_images)
    return [index * num_images // number for index in range(number)]


def _not_measured() -> tuple[str, ...]:
    """Return what was not looked for, as its package is not there."""
    if can_tell_languages():
        return ()
    return ("languages were not detected (needs py3langid; pip install 'clipgraft[data]')",)
