"""What the page says of a run's settings."""

from typing import Any

from clipgraft.reporting.format import short_name, sub_dict
from clipgraft.reporting.run_data import Run

SETTINGS: dict[str, tuple[str, ...]] = {
    "Data": ("data.source", "data.include_unsplit", "data.max_train_images", "data.max_test_images", "seed"),
    "Fine-tuning": (
        "clip.name",
        "finetune.num_epochs",
        "finetune.batch_size",
        "finetune.gradient_accumulation_steps",
        "finetune.learning_rate",
        "finetune.lr_schedule",
        "finetune.warmup_steps",
        "finetune.weight_decay",
        "finetune.max_grad_norm",
    ),
    "Bridge": (
        "base.name",
        "bridge.ridge",
        "bridge.hidden_size",
        "bridge.num_epochs",
        "bridge.learning_rate",
        "bridge.batch_size",
    ),
    "Images": (
        "generate.seed",
        "generate.num_inference_steps",
        "generate.guidance_scale",
        "generate.num_images_per_prompt",
        "generate.negative_prompt",
    ),
}
MEANING_OF_EMPTY: dict[str, dict[Any, str]] = {
    "data.source": {"": "flatland8k, drawn"},
    "data.max_train_images": {0: "all"},
    "data.max_test_images": {0: "all"},
    "generate.negative_prompt": {"": "none"},
}


def settings_tables(run: Run) -> dict[str, list[tuple[str, str]]]:
    """List the recipe's main settings by stage; of a single stage, only its own."""
    has_results = {
        "Data": True,
        "Fine-tuning": bool(run.finetune or run.log) and not run.bridge,
        "Bridge": bool(run.bridge),
        "Images": bool(run.images),
    }
    return {
        title: rows
        for title, keys in SETTINGS.items()
        if (has_results[title] or not run.is_single_stage)
        and (
            rows := [
                (_label(key), setting_text(key, setting(run, key)))
                for key in keys
                if setting(run, key) is not None
            ]
        )
    }


def setting(run: Run, dotted: str) -> Any:
    """A value of the recipe by its dotted name, of one left to the base the pictures' own; None without."""
    *sections, key = dotted.split(".")
    values = run.recipe
    for section in sections:
        values = sub_dict(values, section)
    drawn = run.image_rows[0] if run.image_rows and sections == ["generate"] else {}
    return values.get(key, drawn.get(key))


def _label(dotted: str) -> str:
    names = {"clip.name": "CLIP", "base.name": "diffusion model", "data.source": "source"}
    return names.get(dotted, dotted.rpartition(".")[2].replace("_", " "))


def setting_text(dotted: str, value: Any) -> str:
    """Write a value for the reader: what an empty one means, and of a folder its own name alone."""
    if not isinstance(value, (list, dict)) and value in MEANING_OF_EMPTY.get(dotted, {}):
        return MEANING_OF_EMPTY[dotted][value]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(short_name, value))
    return f"{value:g}" if isinstance(value, float) else short_name(value) or str(value)


def short_setting(value: Any) -> Any:
    """A value for machines: of a folder its own name alone, in a list as well."""
    if isinstance(value, list):
        return [short_setting(item) for item in value]
    return short_name(value) if isinstance(value, str) else value


def shown_recipe(run: Run) -> str:
    """The recipe's text with folders' own names in place of the way to them."""
    text = run.recipe_text
    for section in run.recipe.values():
        for value in section.values() if isinstance(section, dict) else ():
            if isinstance(value, str) and short_name(value) != value:
                text = text.replace(value, short_name(value))
    return text
