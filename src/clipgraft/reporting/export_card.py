"""The model card of what is exported: base, data, recipe, figures, limits and terms, as plain Markdown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipgraft.models.hub import PINS

OPENRAIL = "CreativeML OpenRAIL-M"
OPENRAIL_TEXT = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
OPENRAIL_TERMS = f"""\
The base's licence is {OPENRAIL} ({OPENRAIL_TEXT}).
It counts a model made by distillation from the base's weights or outputs as a *Derivative of the Model*. The
bridge learned from the base's text encoder and, where it was refined, through its U-Net; so whoever passes
this on must

- hand on a copy of that licence, and say what was changed;
- keep notices of copyright and licence;
- bind those who receive it to its restrictions of use (paragraph 5 and Attachment A): not to break the law;
  not to exploit or harm minors; not to make false information in order to harm others; not to make or spread
  personal data that can harm a person; not to defame or harass; not for automated decisions that touch a
  person's legal rights or bind a person; not to discriminate by behaviour or personal traits; not to exploit
  the weaknesses of a group so as to harm; not for medical advice or results; not for justice, law
  enforcement, immigration or asylum, such as telling beforehand who will commit fraud or a crime.

The licence's own text is what counts; this is a summary."""


@dataclass(frozen=True)
class Facts:
    """What a card is written from."""

    content: str
    """What the folder holds and how it is loaded, as Markdown."""
    base: Mapping[str, Any]
    """A graft's record of its base."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """That the bridge was fitted by; empty where it is not known."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of the bridge."""
    refine_recipe: Mapping[str, Any] = field(default_factory=dict)
    """Of the refinement; empty where there was none, or it is not known."""
    refine_metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of the refinement."""
    finetuned_from: str = ""
    """CLIP before fine-tuning; empty where it was not fine-tuned, or that is not known."""
    finetune_metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of CLIP's fine-tuning."""
    has_safety_checker: bool = False
    """Whether the folder holds the base's."""


def model_card(facts: Facts) -> str:
    """Write a model card with the hub's own front matter."""
    base = public_name(str(facts.base["name"]))
    parts = [
        _front_matter(str(facts.base["name"])),
        f"# CLIP grafted onto {base}",
        facts.content,
        "## Base",
        _base_lines(facts.base, base),
        "## Data and recipe",
        "\n".join(_recipe_lines(facts)),
        "## Figures",
        "\n".join(_figure_lines(facts)),
        "## Limits",
        _limits(facts),
        "## Terms",
        _terms(str(facts.base["name"])),
    ]
    return "\n\n".join(parts) + "\n"


def public_name(name: str) -> str:
    """Name of a model or source as others may see it: of a path on this machine its last part alone."""
    is_path = Path(name).is_absolute() or name.startswith(("~", ".")) or Path(name).exists()
    return Path(name).name if is_path else name


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with paths on this machine cut to their last part."""
    return {
        key: public_recipe(value)
        if isinstance(value, Mapping)
        else public_name(value)
        if isinstance(value, str) and ("/" in value or "\\" in value)
        else value
        for key, value in recipe.items()
    }


def _front_matter(name: str) -> str:
    lines = ["---", "library_name: diffusers", "tags: [clipgraft, text-to-image]"]
    if name in PINS:
        lines.append(f"base_model: {name}")
    licenses = {OPENRAIL: "creativeml-openrail-m", "MIT": "mit", "Apache-2.0": "apache-2.0"}
    license_ = licenses.get(_license(name), "other")
    return "\n".join([*lines, f"license: {license_}", "---"])


def _license(name: str) -> str:
    if name == "flatland":
        return "Apache-2.0"
    return PINS[name].license if name in PINS else ""


def _base_lines(record: Mapping[str, Any], name: str) -> str:
    commit = record["revision"]
    where = f"`{name}` at commit `{commit}`" if commit else f"`{name}`"
    return (
        f"{where}: the graft was made for its VAE and U-Net as they are there, unchanged. `clipgraft` "
        "refuses the graft on a base whose cross-attention has other weights."
    )


def _recipe_lines(facts: Facts) -> Iterator[str]:
    if facts.recipe:
        yield from _bridge_lines(facts)
    elif facts.refine_recipe:
        yield "- The bridge's own run is not where it was, so its captions and CLIP are not known."
    else:
        yield "The run that made this graft is not beside it, so its recipe is not known."
        return
    if facts.refine_recipe:
        yield f"- Refined through the base's U-Net on {_source(facts.refine_recipe)}."
        if "num_train_images" in facts.refine_metrics:
            yield f"- num_train_images: {facts.refine_metrics['num_train_images']:,}"
    yield "- All settings: `recipe.toml` beside this card."


def _bridge_lines(facts: Facts) -> Iterator[str]:
    recipe = facts.recipe
    captions = str(recipe["bridge"]["captions"])
    yield f"- Captions: `{public_name(captions)}`." if captions else f"- Captioned images: {_source(recipe)}."
    clip, tuned = str(recipe["clip"]["name"]), facts.finetuned_from
    revision = recipe["clip"]["revision"]
    at = f" at commit `{revision}`" if revision else ""
    yield f"- CLIP: `{public_name(tuned)}`, fine-tuned." if tuned else f"- CLIP: `{public_name(clip)}`{at}."
    for name in ("num_captions", "num_held_out_captions"):
        if name in facts.metrics:
            yield f"- {name}: {facts.metrics[name]:,}"


def _source(recipe: Mapping[str, Any]) -> str:
    source = str(recipe["data"]["source"])
    return f"`{public_name(source)}`" if source else "flatland8k, drawn"


def _figure_lines(facts: Facts) -> Iterator[str]:
    before, after = (facts.finetune_metrics.get(when, {}) for when in ("before", "after"))
    shared = [name for name in before if "recall@" in name and name in after]
    noise = facts.refine_metrics.get("after", {})
    if shared:
        yield "CLIP's fine-tuning, on held-out images:\n"
        yield "| | before | after |\n| --- | --- | --- |"
        yield from (f"| {name} | {before[name]:.4f} | {after[name]:.4f} |" for name in shared)
        yield ""
    fits = {
        name: value["relative_error"]
        for name, value in facts.metrics.items()
        if isinstance(value, Mapping) and isinstance(value.get("relative_error"), Mapping)
    }
    if fits:
        classes = list(next(iter(fits.values())))
        yield "Relative error of the bridged token states against the base's own, on held-out captions:\n"
        yield f"| | {' | '.join(classes)} |\n| --- |{' --- |' * len(classes)}"
        for name, errors in fits.items():
            shown = [f"{errors[key]:.4f}" if key in errors else "-" for key in classes]
            yield f"| {name} | {' | '.join(shown)} |"
        yield ""
    if noise:
        yield "Error of the noise predicted against the base's own text encoder (no text: 1), by timestep:\n"
        yield f"| | {' | '.join(noise)} |\n| --- |{' --- |' * len(noise)}"
        for when in ("before", "after"):
            errors = facts.refine_metrics[when].values()
            shown = ["-" if error is None else f"{error:.4f}" for error in errors]
            yield f"| {when} refining | {' | '.join(shown)} |"
    if not (shared or fits or noise):
        yield "None are beside the graft."


def _limits(facts: Facts) -> str:
    captions = facts.metrics.get("num_captions")
    of = f"{captions:,} captions" if captions else "captions whose number is not known"
    checked = (
        "the base's safety checker, which is included, is no proof of anything either"
        if facts.has_safety_checker
        else "no safety checker is included"
    )
    return f"""\
- The bridge was fitted on {of}. Words and combinations that are not among them are mapped by a
  rule that never saw them; expect less there than of the base's own text encoder.
- It has the base's biases and those of the captions.
- 77 tokens are read, the rest of a prompt is cut off. `clip_skip` is not possible.
- The pictures are not evidence of anything, and {checked}."""


def _terms(name: str) -> str:
    license_ = _license(name)
    if license_ == OPENRAIL:
        return OPENRAIL_TERMS
    if license_:
        return f"The base's licence: {license_}. Captions and photographs have terms of their own."
    return (
        "The base's licence is that of where it came from. **If it is a Stable Diffusion v1 model:**\n\n"
        + OPENRAIL_TERMS
    )
