"""Check a dataset before training: counts, samples, lengths, damage, leakage.

`check_dataset` measures, `render` shows it in a terminal, `to_json` gives it to machines; none needs torch.
"""

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from clipgraft.cache import content_sums
from clipgraft.data.dataset import CONTEXT_LENGTH, SPLITS, CaptionDataset, CaptionedImage, Split
from clipgraft.data.images import open_image
from clipgraft.errors import DataError, MissingFileError, printable

NUM_SAMPLES = 5
NUM_EXAMPLES = 3
"""Names that stand for all that were excluded for one reason."""
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
NUM_LEAKS_SAID = 2
"""Photographs in several splits that fine-tuning names."""
NUM_SHOWN = 10
"""Damaged, repeated or leaking images that a terminal shows; the JSON has all."""


@dataclass(frozen=True, slots=True)
class ExcludedGroup:
    """All images or all captions that were excluded for one reason."""

    kind: str
    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Shortest, median and longest caption."""

    shortest: int
    median: float
    longest: int


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """Measurements of a dataset. Counts are of what is counted in, unless the name says otherwise."""

    root: str
    format: str
    files: dict[str, str]
    notes: tuple[str, ...]
    fingerprint: str
    counts: dict[Split, dict[str, int]]
    """Split -> number of `images` and `captions`."""
    excluded: tuple[ExcludedGroup, ...]
    samples: tuple[CaptionedImage, ...]
    """Images spread evenly over the dataset, as they were parsed."""
    captions_per_image: dict[int, int]
    """Number of captions -> number of images that have so many."""
    caption_words: Lengths
    captions_per_length: dict[int, int]
    """Number of words -> number of captions that have so many."""
    vocabulary_size: int
    """Different words, case and punctuation aside."""
    caption_tokens: Lengths | None
    """With BOS and EOS; None without a tokenizer."""
    num_over_context_length: int | None
    """Captions longer than 77 tokens, that will lose their end; None without a tokenizer."""
    num_images_read: int
    """Photographs that were opened; 0 if this was not asked for."""
    unreadable: dict[str, str] | None
    """Image id -> why its photograph cannot be opened; None if photographs were not opened."""
    duplicates: tuple[tuple[str, ...], ...]
    """Image ids whose files are equal byte by byte."""
    leakage: tuple[dict[str, Split], ...]
    """Equal files in different splits: image id -> split."""


def check_dataset(
    dataset: CaptionDataset,
    tokenizer: Callable[..., Any] | None = None,
    *,
    read_images: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> DatasetCheck:
    """Measure a dataset.

    Args:
        dataset: As loaded.
        tokenizer: A transformers tokenizer, to measure captions in tokens.
        read_images: Open every photograph, to find damaged ones; about 4 ms each for Flickr8k's. Their bytes
            are compared always.
        on_image: Called after each photograph, to show progress.

    Returns:
        The measurements; photographs that cannot be opened are listed, not raised.
    """
    captions = [caption for image in dataset.images for caption in image.captions]
    lengths = [len(caption.split()) for caption in captions]
    tokens = _count_tokens(captions, tokenizer) if tokenizer is not None else None
    unreadable = _read_images(dataset.images, on_image) if read_images else None
    equal = _equal_images(dataset.images, unreadable or {})
    return DatasetCheck(
        root=str(dataset.root),
        format=dataset.format,
        files=dataset.files,
        notes=dataset.notes,
        fingerprint=dataset.fingerprint,
        counts=dataset.counts,
        excluded=_group_excluded(dataset),
        samples=_spread(dataset.images, NUM_SAMPLES),
        captions_per_image=dict(sorted(Counter(len(image.captions) for image in dataset.images).items())),
        caption_words=_lengths(lengths),
        captions_per_length=dict(sorted(Counter(lengths).items())),
        vocabulary_size=len({word for caption in captions for word in WORD.findall(caption.lower())}),
        caption_tokens=_lengths(tokens) if tokens is not None else None,
        num_over_context_length=sum(n > CONTEXT_LENGTH for n in tokens) if tokens is not None else None,
        num_images_read=len(dataset.images) if read_images else 0,
        unreadable=unreadable,
        duplicates=tuple(tuple(group) for group in equal),
        leakage=tuple(group for group in equal if len(set(group.values())) > 1),
    )


def to_json(check: DatasetCheck) -> str:
    """Return the measurements as JSON; null is what was not measured."""
    return json.dumps(asdict(check), indent=2, ensure_ascii=False, default=str)


def leakage_note(check: DatasetCheck) -> str:
    """Say which photographs lie in several splits; empty where none does."""
    if not check.leakage:
        return ""
    shown = [
        " = ".join(f"{name} ({split})" for name, split in group.items())
        for group in check.leakage[:NUM_LEAKS_SAID]
    ]
    more = ", ..." if len(check.leakage) > NUM_LEAKS_SAID else ""
    return printable(
        f"{len(check.leakage):,} photographs lie in more than one split, byte for byte ({', '.join(shown)}"
        f"{more}); figures of val and test are too good by them: leave each in one split "
        "(`clipgraft data check` lists them)"
    )


def render(check: DatasetCheck) -> RenderableType:
    """Return the measurements as what rich's console prints; captions and names are shown as plain text."""
    return Group(
        Text.assemble((check.format, "bold"), " in ", (_plain(check.root), "cyan")),
        *[Text(f"  {role}: {_plain(name)}", style="dim") for role, name in check.files.items()],
        *[Text(f"  note: {_plain(note)}", style="yellow") for note in check.notes],
        Text(),
        _counts_table(check),
        _samples_table(check),
        _lengths_text(check),
        *_problems(check),
    )


def _count_tokens(captions: Sequence[str], tokenizer: Callable[..., Any]) -> list[int]:
    from clipgraft.data.transforms import encode_whole  # needs torch, which the rest does not

    return [len(ids) for ids in encode_whole(captions, tokenizer)]


def _read_images(images: Iterable[CaptionedImage], on_image: Callable[[], None]) -> dict[str, str]:
    """Return the photographs that cannot be opened, with the reason."""
    unreadable: dict[str, str] = {}
    for image in images:
        try:
            open_image(image.path)
        except (DataError, MissingFileError) as error:
            unreadable[image.image_id] = str(error).removeprefix(f"{image.path}: ")
        on_image()
    return unreadable


def _equal_images(images: Iterable[CaptionedImage], unreadable: Mapping[str, str]) -> list[dict[str, Split]]:
    """Return id and split of images whose files are equal byte by byte, each group of them together."""
    readable = [image for image in images if image.image_id not in unreadable]
    groups: dict[str, dict[str, Split]] = {}
    for image, content in zip(readable, content_sums([image.path for image in readable]), strict=True):
        groups.setdefault(content, {})[image.image_id] = image.split
    return [group for group in groups.values() if len(group) > 1]


def _group_excluded(dataset: CaptionDataset) -> tuple[ExcludedGroup, ...]:
    names: dict[tuple[str, str], list[str]] = {}
    for item in dataset.excluded:
        names.setdefault((item.kind, item.reason), []).append(item.name)
    return tuple(
        ExcludedGroup(kind, reason, len(found), tuple(found[:NUM_EXAMPLES]))
        for (kind, reason), found in sorted(names.items())
    )


def _spread(images: tuple[CaptionedImage, ...], number: int) -> tuple[CaptionedImage, ...]:
    number = min(number, len(images))
    return tuple(images[index * len(images) // number] for index in range(number))


def _lengths(counts: Sequence[int]) -> Lengths:
    return Lengths(min(counts), statistics.median(counts), max(counts))


def _counts_table(check: DatasetCheck) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("counted")
    table.add_column("images", justify="right")
    table.add_column("captions", justify="right")
    table.add_column("for example", style="dim", overflow="ellipsis", no_wrap=True)
    for split in SPLITS:
        count = check.counts[split]
        table.add_row(split, f"{count['images']:,}", f"{count['captions']:,}")
    total = {kind: sum(count[kind] for count in check.counts.values()) for kind in ("images", "captions")}
    table.add_section()
    table.add_row("in", f"{total['images']:,}", f"{total['captions']:,}", style="bold green")
    for group in check.excluded:
        shown = {f"{group.kind}s": f"{group.count:,}"}
        reason = Text(f"out: {group.reason}", style="yellow")
        table.add_row(reason, shown.get("images"), shown.get("captions"), Text(_plain(group.examples[0])))
        total[f"{group.kind}s"] += group.count
    table.add_section()
    table.add_row("read in all", f"{total['images']:,}", f"{total['captions']:,}", style="bold")
    return table


def _samples_table(check: DatasetCheck) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("sample", style="cyan", overflow="ellipsis", no_wrap=True)
    table.add_column("split", no_wrap=True)
    table.add_column("first caption", overflow="ellipsis", no_wrap=True)
    for image in check.samples:
        table.add_row(Text(_plain(image.image_id)), image.split, Text(_plain(image.captions[0])))
    return table


def _lengths_text(check: DatasetCheck) -> Text:
    histogram = ", ".join(f"{images:,} with {number}" for number, images in check.captions_per_image.items())
    text = Text.assemble(("captions per image  ", "bold"), histogram)
    text.append("\nwords per caption   ", "bold").append(_range(check.caption_words))
    text.append(f"; {check.vocabulary_size:,} different ones")
    if check.caption_tokens is not None:
        text.append("\ntokens per caption  ", "bold").append(_range(check.caption_tokens))
        style = "yellow" if check.num_over_context_length else "green"
        text.append(f"; {check.num_over_context_length:,} pass {CONTEXT_LENGTH} and lose their end", style)
    return text


def _range(lengths: Lengths) -> str:
    return f"{lengths.shortest} to {lengths.longest}, median {lengths.median:g}"


def _problems(check: DatasetCheck) -> list[RenderableType]:
    if check.unreadable is None:
        return [Text("photographs         not opened", style="dim")]
    problems: list[RenderableType] = []
    lists = {
        "cannot be opened": [f"{name}: {reason}" for name, reason in check.unreadable.items()],
        "have the same bytes": [" = ".join(group) for group in check.duplicates],
        "leak from split to split": [
            " = ".join(f"{name} ({split})" for name, split in group.items()) for group in check.leakage
        ],
    }
    for problem, lines in lists.items():
        if lines:
            problems.append(Text(f"{len(lines):,} {problem}", style="bold red"))
            shown = [Text(_plain(line)) for line in lines[:NUM_SHOWN]]
            more = (
                [Text(f"and {len(lines) - NUM_SHOWN:,} more", style="dim")] if len(lines) > NUM_SHOWN else []
            )
            problems.append(Padding(Group(*shown, *more), (0, 0, 0, 2)))
    fine = f"photographs         {check.num_images_read:,} opened, none damaged, none twice"
    return problems or [Text(fine, style="green")]


def _plain(text: str) -> str:
    """Return text on one line with its control characters escaped."""
    return printable(text.replace("\n", "\\n"))
