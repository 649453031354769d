"""What `clipgraft data` prints."""

from pathlib import Path

from rich.console import Console

from clipgraft.data.check import check_dataset, render, to_json
from clipgraft.data.formats import load_dataset
from clipgraft.device import quiet_libraries
from clipgraft.models.clip import load_clip


def check_data(path: Path, *, include_unsplit: bool, clip: str, as_json: bool) -> None:
    """Print what a dataset holds, and what was excluded and why."""
    dataset = load_dataset(path, include_unsplit=include_unsplit)
    quiet_libraries()
    check = check_dataset(dataset, tokenizer=load_clip(clip).tokenizer if clip else None)
    if as_json:
        print(to_json(check))  # noqa: T201
    else:
        Console().print(render(check))
