"""Check a dataset before training: counts, samples, lengths, damage, leakage."""

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

from clipgraft.data.dataset import CONTEXT_LENGTH, SPLITS, CaptionDataset, CaptionedImage, Split
from clipgraft.data.image_file import content_sums
from clipgraft.data.images import open_image
from clipgraft.errors import DataError, MissingFileError, printable

NUM_SAMPLES = 5
NUM_EXAMPLES = 3
"""Names listed per reason for exclusion."""
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
NUM_LEAKS_SAID = 2
"""Photographs in several splits named by fine-tuning."""
NUM_SHOWN = 10
"""Damaged, duplicate or leaking images shown in a terminal; the JSON has all."""


@dataclass(frozen=True, slots=True)
class ExcludedGroup:
    """Images or captions excluded for one reason."""

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

    @classmethod
    def of(cls, counts: Sequence[int]) -> "Lengths":
        """Summarise lengths."""
        return cls(min(counts), statistics.median(counts), max(counts))

    def __str__(self) -> str:
        return f"{self.shortest} to {self.longest}, median {self.median:g}"


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
    """Image id -> reason; None without `read_images`."""
    damaged: dict[str, str]
    """Image id -> reason, of photographs skipped when the dataset was loaded."""
    duplicates: tuple[tuple[str, ...], ...]
    """Groups of image ids with byte-identical files."""
    leakage: tuple[dict[str, Split], ...]
    """Equal files in different splits: image id -> split."""

    def to_json(self) -> str:
        """Return the measurements as JSON; null = not measured."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str)


def check_dataset(
    dataset: CaptionDataset,
    tokenizer: Callable[..., Any] | None = None,
    *,
    read_images: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> DatasetCheck:
    """Measure a dataset; damaged photographs are listed, not raised.

    Args:
        dataset: The dataset.
        tokenizer: A transformers tokenizer, to measure captions in tokens.
        read_images: Open every photograph (about 4 ms each for Flickr8k's) to find damaged ones. Bytes are
            compared in any case.
        on_image: Called after each photograph, for progress.
    """
    captions = dataset.images.captions
    lengths = [len(caption.split()) for caption in captions]
    tokens = _count_tokens(captions, tokenizer) if tokenizer is not None else None
    unreadable = _read_images(dataset.images, on_image) if read_images else None
    equal = _equal_images(dataset.images, unreadable or {})
    return DatasetCheck(
        root=str(dataset.root),
        format=dataset.format,
        files=dataset.files,
        split_rule=str(dataset.split_rule),
        notes=dataset.notes,
        fingerprint=dataset.fingerprint,
        counts=dataset.counts,
        excluded=_group_excluded(dataset),
        samples=_spread(dataset.images, NUM_SAMPLES),
        captions_per_image=dict(sorted(Counter(len(image.captions) for image in dataset.images).items())),
        caption_words=Lengths.of(lengths),
        captions_per_length=dict(sorted(Counter(lengths).items())),
        vocabulary_size=len({word for caption in captions for word in WORD.findall(caption.lower())}),
        caption_tokens=Lengths.of(tokens) if tokens is not None else None,
        num_over_context_length=sum(n > CONTEXT_LENGTH for n in tokens) if tokens is not None else None,
        num_images_read=len(dataset.images) if read_images else 0,
        unreadable=unreadable,
        damaged=dict(dataset.damaged),
        duplicates=tuple(tuple(group) for group in equal),
        leakage=tuple(group for group in equal if len(set(group.values())) > 1),
    )


def leakage_note(check: DatasetCheck) -> str:
    """Return a warning about photographs in several splits, else ""."""
    if not check.leakage:
        return ""
    shown = ", ".join(map(_with_splits, check.leakage[:NUM_LEAKS_SAID]))
    more = ", ..." if len(check.leakage) > NUM_LEAKS_SAID else ""
    return printable(
        f"{len(check.leakage):,} photographs lie in more than one split, byte for byte ({shown}"
        f"{more}); figures of val and test are too good by them: leave each in one split "
        "(`clipgraft data check` lists them)"
    )


def render(check: DatasetCheck) -> RenderableType:
    """Return the measurements for rich's console, names and captions without markup."""
    return Group(
        Text.assemble((check.format, "bold"), " in ", (_plain(check.root), "cyan")),
        *[Text(f"  {role}: {_plain(name)}", style="dim") for role, name in check.files.items()],
        Text(f"  splits: {_plain(check.split_rule)}", style="dim"),
        *[Text(f"  note: {_plain(note)}", style="yellow") for note in check.notes],
        Text(),
        _counts_table(check),
        _samples_table(check),
        _lengths_text(check),
        *_problems(check),
    )


def _count_tokens(captions: Sequence[str], tokenizer: Callable[..., Any]) -> list[int]:
    from clipgraft.data.transforms import encode_whole  # the only part in need of torch

    return [len(ids) for ids in encode_whole(captions, tokenizer)]


def _read_images(images: Iterable[CaptionedImage], on_image: Callable[[], None]) -> dict[str, str]:
    unreadable: dict[str, str] = {}
    for image in images:
        try:
            open_image(image.file)
        except (DataError, MissingFileError) as error:
            unreadable[image.image_id] = str(error).removeprefix(f"{image.file}: ")
        on_image()
    return unreadable


def _equal_images(images: Iterable[CaptionedImage], unreadable: Mapping[str, str]) -> list[dict[str, Split]]:
    """Group images with equal files: image id -> split."""
    readable = [image for image in images if image.image_id not in unreadable]
    groups: dict[str, dict[str, Split]] = {}
    for image, content in zip(readable, content_sums([image.file for image in readable]), strict=True):
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


def _spread(images: Sequence[CaptionedImage], number: int) -> tuple[CaptionedImage, ...]:
    number = min(number, len(images))
    return tuple(images[index * len(images) // number] for index in range(number))


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
    table.add_row("included", f"{total['images']:,}", f"{total['captions']:,}", style="bold green")
    for group in check.excluded:
        shown = {f"{group.kind}s": f"{group.count:,}"}
        reason = Text(f"excluded: {group.reason}", style="yellow")
        table.add_row(reason, shown.get("images"), shown.get("captions"), Text(_plain(group.examples[0])))
        total[f"{group.kind}s"] += group.count
    table.add_section()
    table.add_row("found in all", f"{total['images']:,}", f"{total['captions']:,}", style="bold")
    return table


def _samples_table(check: DatasetCheck) -> Table:
    table = Table("sample", "split", "first caption", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow, column.no_wrap = "ellipsis", True
    table.columns[0].style = "cyan"
    for image in check.samples:
        table.add_row(Text(_plain(image.image_id)), image.split, Text(_plain(image.captions[0])))
    return table


def _lengths_text(check: DatasetCheck) -> Text:
    histogram = ", ".join(f"{images:,} with {number}" for number, images in check.captions_per_image.items())
    text = Text.assemble(("captions per image  ", "bold"), histogram)
    text.append("\nwords per caption   ", "bold").append(str(check.caption_words))
    text.append(f"; {check.vocabulary_size:,} different ones")
    if check.caption_tokens is not None:
        text.append("\ntokens per caption  ", "bold").append(str(check.caption_tokens))
        style = "yellow" if check.num_over_context_length else "green"
        text.append(f"; {check.num_over_context_length:,} pass {CONTEXT_LENGTH} and lose their end", style)
    return text


def _problems(check: DatasetCheck) -> list[RenderableType]:
    if check.unreadable is None:
        return [Text("photographs         not opened", style="dim")]
    lists = {
        "cannot be opened": [f"{name}: {reason}" for name, reason in check.unreadable.items()],
        "have the same bytes": [" = ".join(group) for group in check.duplicates],
        "leak from split to split": list(map(_with_splits, check.leakage)),
    }
    problems: list[RenderableType] = []
    for problem, lines in filter(lambda item: item[1], lists.items()):
        shown = [Text(_plain(line)) for line in lines[:NUM_SHOWN]]
        if len(lines) > NUM_SHOWN:
            shown.append(Text(f"and {len(lines) - NUM_SHOWN:,} more", style="dim"))
        problems += [
            Text(f"{len(lines):,} {problem}", style="bold red"),
            Padding(Group(*shown), (0, 0, 0, 2)),
        ]
    fine = f"photographs         {check.num_images_read:,} opened, none damaged, no duplicates"
    return problems or [Text(fine, style="green")]


def _with_splits(group: Mapping[str, Split]) -> str:
    return " = ".join(f"{name} ({split})" for name, split in group.items())


def _plain(text: str) -> str:
    return printable(text.replace("\n", "\\n"))
