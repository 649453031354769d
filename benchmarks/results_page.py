"""Write docs/benchmarks.md from the files in benchmarks/results.

    python benchmarks/results_page.py

No figure on that page is typed by hand; a test compares it with the files. A file without a section here is
shown whole.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
FIGURE_KEYS = {
    "mean",
    "recall",
    "fidelity",
    "interval",
    "spread",
    "values",
    "chance",
    "num_prompts",
    "num_seeds",
}
"""A mapping with no other keys is one figure with its interval, or its spread over seeds."""
ROUNDING = 1e-15
"""Figures up to here are rounding of a zero."""
INTRODUCTION = """\
# Benchmarks

Each table is made from a file in `benchmarks/results` by `python benchmarks/results_page.py`; the command
below it measures again. Names are those of the file. Brackets hold 95 % intervals; ± is the standard
deviation over seeds. Times depend on the machine and on what else it did: compare them within a table only.
How each was measured, and what follows from it, is on the pages that the sections name.
"""


class Part(NamedTuple):
    """A table of a file."""

    path: str = ""
    """Keys to it, separated by `/`; empty: the whole file."""
    title: str = ""
    columns: Mapping[str, str] = {}
    """Key -> heading; empty: all."""


class Section(NamedTuple):
    """A file's section of the page."""

    title: str
    text: str
    parts: tuple[Part, ...] = (Part(),)


SECTIONS = {
    "flatland": Section(
        "flatland: from base to graft",
        "All of flatland8k: what the base, the graft and the probe reach ([evaluation](evaluation.md)).",
        (
            Part("rows", columns={"figure": "reached", "aim": "aim"}),
            Part(
                "scores",
                "Share of what prompts name that the images show",
                {
                    "mean": "mean",
                    "held_out": "held-out combinations",
                    "seen": "seen ones",
                    "all_at_once": "all at once",
                },
            ),
            Part("probe_accuracy", "Accuracy of the probe on drawn images"),
        ),
    ),
    "recipes": Section(
        "Fine-tuning recipes",
        "The demo's images, a bridge for each ([what to choose](training.md#holding-on-to-what-clip-knows)).",
        (Part("recipes"),),
    ),
    "ladder": Section(
        "The bridge, part by part",
        "Means over seeds ± their standard deviation; error 1 is no better than zero "
        "([measured](bridge.md#measured)).",
        (
            Part(
                "variants",
                columns={
                    "state_error_words": "error of words",
                    "state_error_padding": "of padding",
                    "key_value_error_words": "of words' keys and values",
                    "noise_error_500": "of the noise",
                    "fidelity": "fidelity",
                    "fidelity_held_out": "held-out combinations",
                },
            ),
        ),
    ),
    "bridge": Section(
        "Bridge and refining at full size",
        "Shapes of Stable Diffusion v1.5 and CLIP B/32, random weights ([measured](bridge.md#measured)).",
        (
            Part("ridge", "Closed form against `numpy.linalg.lstsq`"),
            Part("closed_form", "Closed form over Flickr8k's captions"),
            Part("refine", "A step of refining in bfloat16"),
            Part("refine_float32", "In float32"),
            Part("few_captions", "Error of the linear bridge by number of captions"),
        ),
    ),
    "distill": Section(
        "Distilling",
        "New words, the same in plain words, and fixed prompts "
        "([on flatland](distill.md#what-it-comes-to-on-flatland)).",
        (Part("summary/rows"), Part("summary/differences", "Differences over the same prompts and seeds")),
    ),
    "distill_size": Section(
        "Distilling at full size",
        "Shapes of Stable Diffusion v1.5 and CLIP B/32, random weights "
        "([memory and time](distill.md#memory-and-time-at-full-size)).",
    ),
    "controlnet": Section(
        "A ControlNet under other text encoders",
        "Likeness to the given outlines, and fidelity ([ControlNets](generation.md#controlnets)).",
        tuple(Part(f"rows/{encoder}", encoder) for encoder in ("base's own", "graft", "distilled")),
    ),
    "long_prompts": Section(
        "Prompts beyond 77 tokens",
        "Fidelity ([long prompts](generation.md#weights-and-more-than-77-tokens)).",
    ),
    "generation": Section(
        "Generation",
        "Stable Diffusion v1.5's shape with random weights, and flatland where named ([speed](speed.md)).",
        (
            Part("steps/median_seconds", "A guided step of 512 x 512 pixels, seconds"),
            Part("decode/median_seconds", "Decoding, seconds"),
            Part("memory/peak_bytes", "Peak memory of an image"),
            Part("sizes/seconds", "A step by size, seconds"),
            Part("batches/seconds_a_picture_and_step", "A step per image, by batch, seconds"),
            Part("flatland_speed/images_a_second", "Eight flatland images at once, images a second"),
            Part("flatland_pictures", "flatland's images against stock float32"),
            Part(
                "int8/median_processor_seconds",
                "A guided step in bfloat16 and in INT8, processor seconds of one thread",
            ),
            Part(
                "tiny_vae/openvino/median_processor_seconds",
                "Decoding by a tiny VAE, processor seconds of one thread",
            ),
            Part("flatland_int8/prompt_fidelity", "Prompt fidelity in bfloat16 (none) and in INT8"),
            Part("shortcuts", "Approximations: time over the default's, and likeness to the reference"),
        ),
    ),
    "start": Section(
        "From the shell to a result",
        "With a warm cache, on one thread ([start](speed.md#start)).",
        (
            Part(
                "seconds",
                columns={
                    "processor": "processor seconds",
                    "before: processor": "before",
                    "wall": "least wall seconds",
                    "before: wall": "before",
                },
            ),
        ),
    ),
    "training": Section(
        "Fine-tuning: time",
        "CLIP B/32's shape with random weights ([speed](training.md#speed)).",
        (
            Part("median_seconds_a_step", "A step, seconds"),
            Part("ratios", "Ratios"),
            Part("growth", "By number of images"),
        ),
    ),
    "accumulation": Section(
        "Fine-tuning: memory of accumulated passes",
        "A step of CLIP B/32's shape in float32 ([speed](training.md#speed)).",
        (Part("peak_memory_bytes", "Peak memory"), Part("ratios", "Over one pass of 32")),
    ),
    "pretraining": Section(
        "Training flatland's U-Net",
        "Processor seconds of a step on a CPU, by attention ([how](training.md#flatland-from-scratch)).",
        (Part("bf16/seconds_a_step", "In bfloat16"), Part("no/seconds_a_step", "In float32")),
    ),
    "scaling": Section(
        "Many GPUs",
        "**Derived, not measured** ([several machines](training.md#several-machines)).",
        (Part("split", "One batch over all GPUs"), Part("grown", "As many images on each GPU")),
    ),
    "flickr8k_sd15_run": Section(
        "The recipe flickr8k_sd15, run at its shapes",
        "Random weights, eight photographs ([the recipe](flickr8k_sd15.md#requirements)).",
        (Part("stages"),),
    ),
    "gpu": Section(
        "Training on a GPU",
        "Tests of correctness; no speed was measured yet ([on a GPU](speed.md#on-a-gpu)).",
        (Part("parts/test_gpu_training/tests", columns={"outcome": "outcome"}),),
    ),
    "data": Section(
        "Large tables and decoding",
        "See [tables of millions of rows](data.md#tables-of-millions-of-rows).",
        (
            Part("listing", "By number of pairs"),
            Part("decoding/images_a_second", "Photographs decoded, a second"),
        ),
    ),
    "check": Section(
        "Checking a dataset",
        "See [what `data check` finds](data.md#what-data-check-finds).",
        (
            Part("copies_found", "Share of copies that is found"),
            Part("near_duplicates", "Different images taken for copies"),
            Part("languages", "Captions taken for another language"),
            Part("one_pass_over_captions", "One pass over captions"),
        ),
    ),
    "captions": Section(
        "Captions of flatland8k and Flickr8k",
        "See [drawing a dataset](data.md#drawing-a-dataset).",
        (
            Part(
                columns={
                    "captions": "captions",
                    "different_captions": "different ones",
                    "vocabulary": "words in the vocabulary",
                    "words_that_make_up_90_percent": "words that make up 90 % of the text",
                    "mean_words": "mean words a caption",
                }
            ),
        ),
    ),
    "photographs": Section(
        "Photographs of any shape",
        "Area lost to the middle square and to buckets ([refining](bridge.md#refining)), and flatland's CLIP "
        "on photographs, nine epochs of 809, 91 to test "
        "([photographs and squares](training.md#how-a-photograph-becomes-a-square)).",
        (
            Part("buckets", "Share of the area that is lost"),
            Part("flatland/before", "Recall on photographs before fine-tuning"),
            Part("flatland/after", "and after"),
            Part(
                "modes",
                "by `resize_mode`, and how much more than with `shortest`",
                {
                    "text_to_image_recall@10": "text to image recall@10",
                    "text_to_image_recall@10: difference": "more",
                    "image_to_text_recall@10": "image to text recall@10",
                    "image_to_text_recall@10: difference": "more",
                },
            ),
        ),
    ),
    "evaluation": Section(
        "Retrieval",
        "Recall in chunks against other ways ([speed of retrieval](evaluation.md#speed-of-retrieval)).",
        (
            Part(
                "rows",
                columns={
                    f"{way}: {key}": f"{title}, {unit}"
                    for way, title in (
                        ("chunked", "clipgraft"),
                        ("plain", "whole matrix"),
                        ("torchmetrics",) * 2,
                    )
                    for key, unit in (("seconds", "s"), ("peak_mb", "MB"))
                },
            ),
        ),
    ),
    "probe_by_eye": Section(
        "The probe beside a person",
        "Images in which both read the same, of those that the person could tell"
        " ([limits](limits.md#what-flatlands-images-look-like)).",
        (Part("agreement", columns={"alike": "alike", "read": "of"}),),
    ),
    "service": Section(
        "The studio",
        "See [measured](studio.md#measured).",
        (
            Part("one_client", "One client"),
            Part("eight_clients", "Eight clients"),
            Part("full_queue", "A full queue"),
            Part("listeners", "Clients that listen to a job's events"),
            Part("soak", "At twice the capacity"),
        ),
    ),
    "faults": Section(
        "Faults",
        "Kills, damage and full disks over the whole command line.",
        (Part("families"), Part("total", "In all")),
    ),
}


def section_of(name: str) -> Section:
    """Return the section of a file of results, by its name without ending."""
    return SECTIONS.get(name) or Section(name.replace("_", " "), "")


def page() -> str:
    """Return the whole page; sections in the order above, further files last."""
    paths = {path.stem: path for path in sorted(RESULTS.glob("*.json"))}
    names = [name for name in SECTIONS if name in paths] + [name for name in paths if name not in SECTIONS]
    texts = [INTRODUCTION, *(_section(name, paths[name]) for name in names)]
    return "\n".join(texts)


def _section(name: str, path: Path) -> str:
    results = json.loads(path.read_text(encoding="utf-8"))
    section = section_of(name)
    lines = [f"## {section.title}", ""]
    if section.text:
        lines += [section.text, ""]
    for part in section.parts:
        lines += _part(results, part, path.name)
    return "\n".join([*lines, *_measured(results, path.name), ""])


def _part(results: Any, part: Part, name: str) -> Iterator[str]:
    value = results
    for key in filter(None, part.path.split("/")):
        if key not in value:
            raise KeyError(f"{name} has no {part.path!r}; correct SECTIONS in {__file__}")
        value = value[key]
    if part.title:
        yield from (f"**{part.title}**", "")
    corner, rows = _rows(value, "bytes" in part.path)
    headings = part.columns or {key: _heading(key) for row in rows.values() for key in row}
    keys = [key for key in headings if any(key in row for row in rows.values())]
    yield f"| {corner} | " + " | ".join(headings[key] for key in keys) + " |"
    yield "| --- |" + " --- |" * len(keys)
    for key, row in rows.items():
        yield f"| {_heading(key)} | " + " | ".join(row.get(each, "") for each in keys) + " |"
    yield ""


def _rows(value: Any, are_bytes: bool) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the heading of the first column, and rows of texts by name and column."""
    if isinstance(value, list):
        corner = next(iter(value[0]))
        value = {
            _text(corner, each[corner]): {key: each[key] for key in each if key != corner} for each in value
        }
        return _heading(corner), {name: _flat(each, are_bytes) for name, each in value.items()}
    inner = {key: each for key, each in value.items() if isinstance(each, dict) and not _is_figure(each)}
    inner.pop("environment", None)
    if len(inner) > len(value) / 2:
        return "", {name: _flat(each, are_bytes) for name, each in inner.items()}
    return "", {name: {"": text} for name, text in _flat(value, are_bytes).items()}


def _is_figure(value: dict[str, Any]) -> bool:
    return bool(value.keys() & {"mean", "recall", "fidelity"}) and value.keys() <= FIGURE_KEYS


def _flat(values: Mapping[str, Any], are_bytes: bool = False) -> dict[str, str]:
    """Return texts of all figures by their keys; lists of raw values are left out."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and not _is_figure(value):
            if key != "environment":
                inner = _flat(value, are_bytes or "bytes" in key)
                found |= {f"{key}: {name}": text for name, text in inner.items()}
        elif not isinstance(value, list):
            found[key] = _text("bytes" if are_bytes else key, value)
    return found


def _heading(key: str) -> str:
    return key.replace("_", " ").replace("|", "\\|")


def _text(key: str, value: Any) -> str:
    if isinstance(value, dict):
        mean = _number(next(value[name] for name in ("mean", "recall", "fidelity") if name in value))
        if value.get("interval"):
            low, high = map(_number, value["interval"])
            return f"{mean} ({low} to {high})"
        return f"{mean} ± {_number(value['spread'])}" if "spread" in value else mean
    if "bytes" in key and isinstance(value, int):
        return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.1f} MB"
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) > ROUNDING else "0"


def _measured(results: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the commands that measured a file, each with its date, versions and machine."""
    parts = [results, *(each for each in results.values() if isinstance(each, dict))]
    found = (each["environment"] for each in parts if "environment" in each)
    places = {(place["command"], place["started"]): place for place in found}
    if not places:
        yield f"`benchmarks/results/{name}`"
    for place in places.values():
        threads = f"{place['num_threads']} thread{'s' * (place['num_threads'] > 1)}"
        yield (
            f"- `{place['command']}`: {place['started'][:10]}, torch {place['torch']}, {place['cpu']}, "
            f"{threads}; `benchmarks/results/{name}`"
        )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
