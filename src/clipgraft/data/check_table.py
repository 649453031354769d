"""A check of a dataset, printed: counts, samples, lengths and findings."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from clipgraft.data.check import DatasetCheck
from clipgraft.data.dataset import CONTEXT_LENGTH, SPLITS
from clipgraft.data.findings import Example, Finding
from clipgraft.errors import printable

NUM_SAMPLES = 5
"""Samples in a terminal; a sheet has all."""
MAX_CHARACTERS = 300
"""Of an example in a terminal; the JSON has all."""
SERIOUS = ("unreadable", "leakage")
"""Kinds of findings that stop a training, or make its figures wrong."""


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
        _photographs_text(check),
        *[part for finding in check.findings for part in _finding(finding)],
        *[Text(f"not measured: {what}", style="dim") for what in check.not_measured],
    )


def _counts_table(check: DatasetCheck) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("counted")
    table.add_column("images", justify="right")
    table.add_column("captions", justify="right")
    table.add_column("for example", style="dim", overflow="ellipsis", no_wrap=True)
    for split in SPLITS:
        count = check.counts[split]
        table.add_row(
            split, *(f"{count[kind]:,}" if kind in count else "" for kind in ("images", "captions"))
        )
    total = {
        kind: sum(count.get(kind, 0) for count in check.counts.values()) for kind in ("images", "captions")
    }
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
    table.columns[1].min_width = max(map(len, SPLITS))
    for image in check.samples[:: max(1, len(check.samples) // NUM_SAMPLES)][:NUM_SAMPLES]:
        table.add_row(Text(_plain(image.image_id)), image.split, Text(_plain(image.captions[0])))
    return table


def _lengths_text(check: DatasetCheck) -> Text:
    histogram = ", ".join(f"{images:,} with {number}" for number, images in check.captions_per_image.items())
    text = Text.assemble(("captions per image  ", "bold"), histogram)
    text.append("\nwords per caption   ", "bold").append(str(check.caption_words))
    text.append(f"; {check.vocabulary_size:,} different words")
    if check.caption_tokens is not None:
        text.append("\ntokens per caption  ", "bold").append(str(check.caption_tokens))
        style = "yellow" if check.num_over_context_length else "green"
        text.append(f"; {check.num_over_context_length:,} pass {CONTEXT_LENGTH} and lose their end", style)
    return text


def _photographs_text(check: DatasetCheck) -> Text:
    if check.unreadable is None:
        return Text("photographs         not opened", style="dim")
    text = Text.assemble(("photographs         ", "bold"), f"{check.num_images_read:,} opened")
    odd = [*check.unreadable, *check.duplicates, *(check.near_duplicates or ())]
    return text if odd else text.append(", none damaged, no duplicates", "green")


def _finding(finding: Finding) -> Iterator[RenderableType]:
    yield Text()
    yield Text(_plain(finding.summary), style="bold red" if finding.kind in SERIOUS else "bold yellow")
    yield Padding(Text(_plain(finding.effect), style="italic"), (0, 0, 0, 2), expand=False)
    lines = [Text(_line(example), style="dim") for example in finding.examples]
    if finding.count > len(lines):
        lines.append(Text(f"and {finding.count - len(lines):,} more", style="dim"))
    yield Padding(Group(*lines), (0, 0, 0, 2), expand=False)


def _line(example: Example) -> str:
    """Return an example in one line, with the name of its image."""
    text = example.text if len(example.text) <= MAX_CHARACTERS else f"{example.text[:MAX_CHARACTERS]}..."
    if len(example.images) == 1 and not text.startswith(example.images[0].image_id):
        text = f"{example.images[0].image_id}: {text}"
    return _plain(text)


def _plain(text: str) -> str:
    return printable(text.replace("\n", "\\n"))
