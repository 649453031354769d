"""Model cards of runs and exported grafts, with hub front matter."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from clipgraft.config import Recipe, is_tables
from clipgraft.models.configs import BaseRecord
from clipgraft.models.hub import PINS
from clipgraft.models.lineage import Figures, Lineage, Stage
from clipgraft.reporting import evidence, sections
from clipgraft.reporting.format import Table, short_name
from clipgraft.reporting.provenance import resources_table, setting, settings_tables, started
from clipgraft.reporting.run_data import RunData
from clipgraft.section import FLATLAND, GIVEN
from clipgraft.settings import FLATLAND8K

MAX_RECIPE_ROWS = 60
OPENRAIL = "CreativeML OpenRAIL-M"
LICENSES = {OPENRAIL: "creativeml-openrail-m", "MIT": "mit", "Apache-2.0": "apache-2.0"}
"""Licence -> its id on the hub."""
OPENRAIL_TERMS = """\
The base's licence is CreativeML OpenRAIL-M (https://huggingface.co/spaces/CompVis/stable-diffusion-license).
It counts a model distilled from the base's weights or outputs as a *Derivative of the Model*. {reason};
so whoever passes this on must

- hand on a copy of that licence, and state the changes;
- keep copyright and licence notices;
- bind recipients to its use restrictions (paragraph 5 and Attachment A): not to break the law; not to exploit
  or harm minors; not to spread false information in order to harm others; not to generate or spread personal
  data that can harm a person; not to defame or harass; not for automated decisions that affect a person's
  legal rights or create binding obligations; not to discriminate by behaviour or personal characteristics;
  not to exploit the vulnerabilities of a group so as to harm; not for medical advice or results; not for
  justice, law enforcement, immigration or asylum, such as predicting who will commit fraud or a crime.

The licence's own text is authoritative; this is a summary."""
BRIDGE_REASON = "The bridge\nlearned from the base's text encoder and, if it was refined, through its U-Net"
DISTILLED_REASON = (
    "The text\nencoder is a changed copy of the base's own, and learned from a graft made for it"
)
MAX_WORDS = 200
"""New words listed in a card."""


def run_card(run: RunData) -> str:
    """Return a run's model card."""
    evaluation, base = run.evaluation, short_name(setting(run, "base.name"))
    how = evaluation.describe_settings()
    parts = [
        _plain(sections.describe_run(run)),
        _section("Data", sections.data_table(run)),
        _settings(run),
        _section("Retrieval", sections.recall_table(run)),
        _section("Bridge", sections.bridge_table(run)),
        *(_section(title, table) for title, table in sections.further_tables(run).items()),
        _section("Paired differences", evidence.differences_tables(evaluation)[0]),
        *(_section(table.title, table) for table in evidence.metric_tables(evaluation)[0]),
        *(f"> {_plain(note)}" for note in evaluation.notes),
        _plain(how and f"Generated and scored with: {how}"),
        "## Limits\n\nThe figures hold for the data and the base named here, and for prompts like those "
        f"measured. The base{f' ({_plain(base)})' if base else ''} and CLIP have licences of their own.",
        _section("Time, energy and memory", resources_table(run)),
        _reproduction(run),
    ]
    return model_card(_plain(run.name), parts, base)


def graft_card(content: str, base: BaseRecord, lineage: Lineage, *, has_safety_checker: bool = False) -> str:
    """Return the card of an exported graft.

    Args:
        content: The folder's contents and how to load them, as Markdown.
        has_safety_checker: Whether the folder holds the base's.
    """
    name = public_name(base.name)
    bridged = lineage.find("bridge")
    number = bridged.counts.get("num_captions") if bridged else None
    num_captions = f"{number:,}" if number else "an unknown number of"
    checked = (
        "the included safety checker of the base is no guarantee"
        if has_safety_checker
        else "no safety checker is included"
    )
    parts = [
        content,
        f"## Base\n\n{_base_place(base)}: the graft was made for its VAE and U-Net, unchanged. `clipgraft` "
        "refuses it on a base whose cross-attention has other weights.",
        "## Data and recipe\n\n" + "\n".join(_lineage_lines(lineage)),
        "## Figures\n\n" + ("\n\n".join(_figures(lineage)) or "None were recorded."),
        f"## Limits\n\n- The bridge was fitted on {num_captions} captions. Words and combinations absent "
        "from them are mapped by extrapolation; expect less there than of the base's own text encoder.\n"
        "- It inherits the biases of the base and of the captions.\n"
        "- Prompts are cut after 77 tokens. `clip_skip` is not supported.\n"
        f"- Generated images are not evidence of anything, and {checked}.",
        f"## Terms\n\n{_terms(base.name, BRIDGE_REASON)}",
    ]
    return model_card(f"CLIP grafted onto {name}", parts, base.name)


def distilled_card(
    content: str, base: BaseRecord, lineage: Lineage, *, has_safety_checker: bool = False, recipe: str = ""
) -> str:
    """Return the card of an exported distilled text encoder.

    Args:
        content: The export's contents and how to load them, as Markdown.
        has_safety_checker: Whether it holds the base's.
        recipe: All settings in TOML, for an export without a file of them.
    """
    name, stage = public_name(base.name), lineage.find("distill")
    checked = "the included safety checker" if has_safety_checker else "no safety checker is included"
    parts = [
        content,
        _section("New words", _words_table(stage.words) if stage else None),
        f"## Base\n\n{_base_place(base)}: its U-Net, VAE and tokenizer are unchanged. The text encoder is "
        "a copy of its own, trained on captions alone to give a graft's states for captions with new words, "
        "and its own states for all others.",
        "## Data and recipe\n\n"
        + "\n".join(_lineage_lines(lineage, "at the end of" if recipe else "beside")),
        "## Figures\n\n" + ("\n\n".join(_figures(lineage)) or "None were recorded."),
        "## Limits\n\n- New words were learned from captions, in sentences like theirs; expect less of other "
        "sentences.\n- It inherits the biases of the base and of the captions.\n"
        f"- Generated images are not evidence of anything, and {checked}"
        f"{' of the base is no guarantee' if has_safety_checker else ''}.",
        f"## Terms\n\n{_terms(base.name, DISTILLED_REASON)}",
        recipe and f"## Recipe\n\n```toml\n{recipe}```",
    ]
    return model_card(f"{name} with new words", parts, base.name)


def _words_table(words: Mapping[str, int]) -> Table | None:
    if not words:
        return None
    rows: list[tuple[str, ...]] = [(word, f"{count:,}") for word, count in [*words.items()][:MAX_WORDS]]
    more = f"And {len(words) - MAX_WORDS:,} more." if len(words) > MAX_WORDS else ""
    return Table(("word", "training captions"), rows, more)


def model_card(title: str, parts: Sequence[str], base: str) -> str:
    """Return a card with the hub's front matter.

    Args:
        parts: Markdown; empty ones are left out.
        base: Name of the base; decides the licence.
    """
    data = ModelCardData(
        library_name="diffusers",
        tags=["clipgraft", "text-to-image"],
        base_model=base if base in PINS else None,
        license=LICENSES.get(license_of(base), "other"),
    )
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{body}\n"


def _base_place(base: BaseRecord) -> str:
    name = public_name(base.name)
    return f"`{name}` at commit `{base.revision}`" if base.revision else f"`{name}`"


def public_name(name: str) -> str:
    """Return a model's or data set's name without local folders."""
    is_path = Path(name).is_absolute() or name.startswith(("~", ".")) or Path(name).exists()
    return Path(name).name if is_path else name


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with local paths cut to their last part."""
    return {
        key: public_recipe(value)
        if isinstance(value, Mapping)
        else [public_recipe(part) for part in value]
        if is_tables(value)
        else public_name(value)
        if isinstance(value, str) and ("/" in value or "\\" in value)
        else value
        for key, value in recipe.items()
    }


def license_of(name: str) -> str:
    """Return the name of a known base's licence, else an empty text."""
    if name == FLATLAND:
        return "Apache-2.0"
    return PINS[name].license if name in PINS else ""


def _lineage_lines(lineage: Lineage, place: str = "beside") -> Iterator[str]:
    bridged, refined, tuned = (lineage.find(stage) for stage in ("bridge", "refine", "finetune"))
    distilled = lineage.find("distill")
    if not bridged and not refined and not distilled:
        yield "How this graft was made is not recorded."
        return
    if bridged and bridged.recipe:
        yield from _bridge_lines(bridged, bridged.recipe, tuned)
    else:
        yield "- The captions and the CLIP of the bridge are not recorded."
    if refined and refined.recipe:
        yield f"- Refined through the base's U-Net on {_source(refined.recipe)}."
        yield from _counted("Refining", refined)
    if distilled and distilled.recipe:
        captions = _captions(distilled.recipe.distill.captions)
        source = f"captions {captions}" if captions else f"the captions of {_source(distilled.recipe)}"
        yield f"- Distilled into the base's own text encoder on {source}."
        yield from _counted("Distilling", distilled)
    yield f"- All settings: {'' if place != 'beside' else '`recipe.toml` '}{place} this card."


def _bridge_lines(stage: Stage, recipe: Recipe, tuned: Stage | None) -> Iterator[str]:
    captions, clip = _captions(recipe.bridge.captions), recipe.clip
    yield f"- Captions: {captions}." if captions else f"- Captioned images: {_source(recipe)}."
    if (tuned or stage).clip_given:
        yield f"- CLIP: given in Python{', fine-tuned' if tuned else ''}."
    elif tuned and tuned.recipe:
        yield f"- CLIP: `{public_name(tuned.recipe.clip.name)}`, fine-tuned."
    else:
        at = f" at commit `{clip.revision}`" if clip.revision else ""
        yield f"- CLIP: `{public_name(clip.name)}`{at}."
    yield from _counted("Bridge", stage)


def _counted(what: str, stage: Stage) -> Iterator[str]:
    """Say how many captions or images a stage was given."""
    numbers = [
        f"{number:,} {name.removeprefix('num_').replace('_', ' ')}" for name, number in stage.counts.items()
    ]
    if numbers:
        yield f"- {what}: {', '.join(numbers)}."


def _captions(file: str) -> str:
    """Return where a stage's captions came from; "" = from its images."""
    return "given in Python" if file == GIVEN else file and f"`{public_name(file)}`"


def _source(recipe: Recipe) -> str:
    if recipe.data.sources:
        parts = (
            f"`{public_name(part.source or FLATLAND8K)}` x {part.weight:g}" for part in recipe.data.sources
        )
        return ", ".join(parts)
    source = recipe.data.source
    return f"`{public_name(source)}`" if source else FLATLAND8K


def _figures(lineage: Lineage) -> Iterator[str]:
    bridged, refined, tuned = (lineage.find(stage) for stage in ("bridge", "refine", "finetune"))
    recall = {
        when: {name: value for name, value in figures.items() if "recall@" in name}
        for when, figures in (tuned.figures if tuned else {}).items()
    }
    if any(recall.values()):
        yield "Fine-tuning of CLIP, on held-out images:\n\n" + figures_table(recall, flip=True)
    if bridged and bridged.figures:
        yield (
            "Relative error of the bridged hidden states against the base's own, on held-out captions:\n\n"
            + figures_table(bridged.figures)
        )
    if refined and any(refined.figures.values()):
        yield (
            "Error of the predicted noise against that with the base's own text encoder (no text: 1), by "
            "timestep:\n\n"
            + figures_table({f"{when} refining": row for when, row in refined.figures.items()})
        )

    distilled = lineage.find("distill")
    if distilled and distilled.figures:
        yield (
            "Relative error of the distilled states on held-out captions, against the graft's where they "
            "have new words, else against the base's own (0: the same states):\n\n"
            + figures_table(distilled.figures)
        )


def figures_table(figures: Figures, *, flip: bool = False) -> str:
    """Return figures by row and column as a Markdown table."""
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    if flip:
        figures, names = {n: {k: row.get(n) for k, row in figures.items()} for n in names}, list(figures)
    rows = [
        (name, *("-" if (value := row.get(key)) is None else f"{value:.4f}" for key in names))
        for name, row in figures.items()
    ]
    return _markdown(Table(("", *names), rows))


def _terms(name: str, reason: str) -> str:
    license_ = license_of(name)
    if license_ == OPENRAIL:
        return OPENRAIL_TERMS.format(reason=reason)
    if license_:
        return f"The base's licence: {license_}. Captions and photographs have terms of their own."
    return (
        "The base's licence is that of its origin. **If it is a Stable Diffusion v1 model:**\n\n"
        + OPENRAIL_TERMS.format(reason=reason)
    )


def _settings(run: RunData) -> str:
    rows: list[tuple[str, ...]] = [
        row for title, rows in settings_tables(run).items() for row in ((title,), *rows)
    ]
    return _section("Recipe", Table(("setting", "value"), rows[:MAX_RECIPE_ROWS])) if rows else ""


def _reproduction(run: RunData) -> str:
    environment, lines = run.environment, []
    if environment.get("command"):
        lines.append(f"    {' '.join(str(environment['command']).split())}")
    versions = [
        f"{key} {environment[key]}" for key in ("clipgraft", "torch", "device") if environment.get(key)
    ]
    if versions:
        lines.append(_plain(f"With {', '.join(versions)}; {started(run)}.".replace("; .", ".")))
    return "\n\n".join(["## Reproduce it", *lines]) if lines else ""


def _section(title: str, table: Table | None) -> str:
    return f"## {_plain(title)}\n\n{_markdown(table)}" if table else ""


def _markdown(table: Table) -> str:
    width = len(table.head)
    lines = [_row(table.head), "|" + " --- |" * width]
    lines += [_row((f"**{row[0]}**",) + ("",) * (width - 1) if len(row) == 1 else row) for row in table.rows]
    return "\n".join(lines) + (f"\n\n{_plain(table.note)}" if table.note else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """One line without markup, as file names and reasons are untrusted."""
    line = " ".join(str(text).split())[:1000]
    return re.sub(r"([\\`|<>\[\]])", r"\\\1", line)
