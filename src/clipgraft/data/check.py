"""Check a dataset before training: counts, samples and findings."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from clipgraft.data.caption_check import CaptionCheck, Lengths
from clipgraft.data.caption_languages import can_tell_languages
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionDataset, CaptionedImage, CaptionedImages, Split
from clipgraft.data.findings import Finding, Lookup
from clipgraft.data.near_duplicates import can_hash
from clipgraft.data.photograph_check import PhotographCheck
from clipgraft.errors import printable

NUM_SAMPLES = 5
NUM_EXAMPLES = 3
"""Names listed per reason for exclusion."""
NUM_LEAKS_SAID = 2
"""Photographs in several splits named by fine-tuning."""
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
    """Split -> number of `images` and `captions`."""
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
    """Groups of image ids that look alike; None without `read_images` or imagehash."""
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
        read_images: Decode every photograph (about 4 ms each for Flickr8k's) to find damaged ones and
            those that look alike, and tell the languages of captions. Bytes are compared in any case.
        num_samples: Number of `samples`.
        on_image: Called after each photograph, for progress.
    """
    images = dataset.images
    captions, photographs, tokens = _scan(images, tokenizer, read_images, on_image)
    lookup = _lookup_in(images)
    languages = [captions.languages()] if read_images and can_tell_languages() else []
    findings = [*photographs.findings(lookup), *captions.findings(lookup, photographs), *languages]
    equal = _named(photographs.duplicates(), lookup)
    near = photographs.near_duplicates()
    return DatasetCheck(
        root=str(dataset.root),
        format=dataset.format,
        files=dataset.files,
        split_rule=str(dataset.split_rule),
        notes=dataset.notes,
        fingerprint=dataset.fingerprint,
        counts=dataset.counts,
        excluded=_group_excluded(dataset),
        samples=_spread(len(images), num_samples, lookup),
        captions_per_image=dict(sorted(captions.counts.items())),
        caption_words=Lengths.of(captions.lengths),
        captions_per_length=dict(sorted(captions.lengths.items())),
        vocabulary_size=captions.vocabulary_size,
        caption_tokens=Lengths.of(tokens) if tokens else None,
        num_over_context_length=sum(tokens[n] for n in tokens if n > CONTEXT_LENGTH) if tokens else None,
        num_images_read=len(images) if read_images else 0,
        unreadable=photographs.unreadable if read_images else None,
        damaged=dict(dataset.damaged),
        duplicates=tuple(map(tuple, equal)),
        leakage=tuple(group for group in equal if len(set(group.values())) > 1),
        near_duplicates=tuple(map(tuple, _named(near, lookup))) if near is not None else None,
        findings=tuple(filter(None, findings)),
        not_measured=_not_measured() if read_images else (),
    )


def leakage_note(check: DatasetCheck) -> str:
    """Return a warning about photographs in several splits, else ""."""
    if not check.leakage:
        return ""
    shown = ", ".join(map(with_splits, check.leakage[:NUM_LEAKS_SAID]))
    more = ", ..." if len(check.leakage) > NUM_LEAKS_SAID else ""
    return printable(
        f"{len(check.leakage):,} photographs lie in more than one split, byte for byte ({shown}"
        f"{more}); figures of val and test are too good by them: leave each in one split "
        "(`clipgraft data check` lists them, and with --fix keeps each in one)"
    )


def with_splits(group: Mapping[str, Split]) -> str:
    """Return images and their splits: `a.jpg (train) = b.jpg (test)`."""
    return " = ".join(f"{name} ({split})" for name, split in group.items())


def _scan(
    images: CaptionedImages,
    tokenizer: Callable[..., Any] | None,
    read_images: bool,
    on_image: Callable[[], None],
) -> tuple[CaptionCheck, PhotographCheck, Counter[int]]:
    """Measure captions, photographs and tokens in one pass."""
    captions = CaptionCheck(len(images))
    photographs = PhotographCheck(decode=read_images, on_image=on_image)
    tokens: Counter[int] = Counter()
    following = iter(images)
    while part := list(islice(following, NUM_AT_ONCE)):
        for image in part:
            captions.add(image)
        photographs.add(part)
        if tokenizer is not None:
            tokens.update(_count_tokens([text for image in part for text in image.captions], tokenizer))
    return captions, photographs, tokens


def _count_tokens(captions: Sequence[str], tokenizer: Callable[..., Any]) -> list[int]:
    from clipgraft.data.transforms import encode_whole  # the only part in need of torch

    return [len(ids) for ids in encode_whole(captions, tokenizer)]


def _lookup_in(images: Iterable[CaptionedImage]) -> Lookup:
    """Return a function that finds images by number."""

    def lookup(numbers: Collection[int]) -> dict[int, CaptionedImage]:
        if isinstance(images, Sequence):
            return {number: images[number] for number in numbers}
        return {number: image for number, image in enumerate(images) if number in numbers} if numbers else {}

    return lookup


def _named(groups: Iterable[Sequence[int]], lookup: Lookup) -> list[dict[str, Split]]:
    """Return groups of numbers as image id -> split."""
    groups = list(groups)
    found = lookup({number for group in groups for number in group})
    return [{found[number].image_id: found[number].split for number in group} for group in groups]


def _group_excluded(dataset: CaptionDataset) -> tuple[ExcludedGroup, ...]:
    names: dict[tuple[str, str], list[str]] = {}
    for item in dataset.excluded:
        names.setdefault((item.kind, item.reason), []).append(item.name)
    return tuple(
        ExcludedGroup(kind, reason, len(found), tuple(found[:NUM_EXAMPLES]))
        for (kind, reason), found in sorted(names.items())
    )


def _spread(num_images: int, number: int, lookup: Lookup) -> tuple[CaptionedImage, ...]:
    number = min(number, num_images)
    found = lookup({index * num_images // number for index in range(number)})
    return tuple(found[index] for index in sorted(found))


def _not_measured() -> tuple[str, ...]:
    """Return what was not looked for, as its package is not there."""
    install = "pip install 'clipgraft[data]'"
    return (
        *(
            ()
            if can_hash()
            else (f"images that look alike were not looked for (needs imagehash; {install})",)
        ),
        *(() if can_tell_languages() else (f"languages were not told (needs py3langid; {install})",)),
    )
