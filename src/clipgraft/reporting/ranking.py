"""Best and worst prompts by score, failed pictures, nearest training pictures: nothing picked by hand."""

from collections.abc import Sequence
from typing import Any

from clipgraft.reporting.embedded_images import STATUS_NOTES, PromptPictures, group_pictures
from clipgraft.reporting.format import decimal, sub_dict, sub_rows
from clipgraft.reporting.run_data import Run, is_number

NUM_RANKED = 3
"""Prompts shown from either end."""
NUM_NEAREST = 4
MAX_FAILED = 12
METRICS = ("prompt_fidelity", "clip_score_raw", "clip_score_2.5")
"""By the first of these that scores pictures, prompts are ranked; the next one decides between equals."""
RANKED_BYTES = 500_000
NEAREST_BYTES = 200_000


def ranked_prompts(run: Run) -> tuple[dict[str, list[PromptPictures]], str]:
    """Return the best and the worst prompts of the last measured column, and how they were ranked."""
    pictures = [row for row in sub_rows(run.evaluation, "pictures") if isinstance(row.get("file"), str)]
    column = last_measured_column(run)
    own = [row for row in pictures if row.get("column") == column and row.get("status") == "ok"]
    metric = next((name for name in METRICS if any(is_number(_score(row, name)) for row in own)), "")
    if not metric:
        return {}, ""
    scored = [row for row in own if is_number(_score(row, metric))]
    ranked = sorted(_by_prompt(scored).items(), key=lambda item: _sort_key(item, metric))
    num = min(NUM_RANKED, len(ranked) // 2) or len(ranked)
    ends = {"Best": ranked[-num:][::-1], "Worst": ranked[:num]}
    texts = _prompts(run)
    groups = {
        title: [_group(run, texts, prompt_id, pictures, metric) for prompt_id, _ in ends[title]]
        for title in (ends if len(ranked) > 1 else {"Best": ends["Best"]})
    }
    title = sub_dict(sub_dict(run.evaluation, "metrics"), metric).get("title", metric)
    note = (
        f"Of {len(ranked):,} prompts, by {title} of the column '{column}'; equals are told apart by the next "
        "score, then by their number. Below each picture stands its own score."
    )
    return groups, note


def last_measured_column(run: Run) -> str:
    """Name of the column that the run was made for: the last one that is neither floor nor ceiling."""
    return _measured_columns(run)[-1] if _measured_columns(run) else ""


def _measured_columns(run: Run) -> list[str]:
    columns = sub_rows(run.evaluation, "columns")
    return [str(row.get("name")) for row in columns if row.get("role") == "measured"]


def failed_pictures(run: Run) -> tuple[list[tuple[str, str, str]], int]:
    """Return prompt, column and fault of pictures that are not ok, the first few, and how many there are."""
    rows = [row for row in sub_rows(run.evaluation, "pictures") if row.get("status", "ok") != "ok"]
    rows += [row for row in run.pictures if row.get("status", "ok") != "ok"]
    texts = _prompts(run)
    shown = [
        (
            str(row.get("prompt", texts.get(row.get("prompt_id"), "unknown prompt"))),
            str(row.get("column") or ""),
            STATUS_NOTES.get(str(row.get("status")), str(row.get("status"))),
        )
        for row in rows[:MAX_FAILED]
    ]
    return shown, len(rows)


def nearest_training_pictures(run: Run) -> list[PromptPictures]:
    """Pair the pictures that are nearest to a training photograph with it, nearest first."""
    texts, groups = _prompts(run), []
    for row in sub_rows(run.evaluation, "nearest_training_images")[:NUM_NEAREST]:
        prompt = texts.get(row.get("prompt_id"), "")
        pair = [
            {"prompt": prompt, "column": "drawn", "file": str(row.get("file")), "path": row.get("path")},
            {
                "prompt": prompt,
                "column": "nearest photograph",
                "caption": f"cosine {decimal(row.get('cosine'))}",
                "file": str(row.get("training_file")),
                "path": row.get("training_path"),
            },
        ]
        groups += group_pictures(pair, NEAREST_BYTES // NUM_NEAREST)[0]
    return groups


def _prompts(run: Run) -> dict[Any, str]:
    return {
        row["id"]: str(row.get("prompt", ""))
        for row in sub_rows(run.evaluation, "prompts")
        if isinstance(row.get("id"), int | str)
    }


def _score(row: dict[str, Any], metric: str) -> Any:
    return sub_dict(row, "scores").get(metric)


def _by_prompt(rows: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get("prompt_id"), []).append(row)
    return groups


def _sort_key(item: tuple[Any, list[dict[str, Any]]], metric: str) -> tuple[float, ...]:
    prompt_id, rows = item
    metrics = [metric, *(name for name in METRICS if name != metric)]
    means = []
    for name in metrics:
        scores = [_score(row, name) for row in rows if is_number(_score(row, name))]
        means.append(sum(scores) / len(scores) if scores else 0.0)
    return (*means, -prompt_id if is_number(prompt_id) else 0)


def _group(
    run: Run, texts: dict[Any, str], prompt_id: Any, pictures: Sequence[dict[str, Any]], metric: str
) -> PromptPictures:
    """A prompt's pictures of the first seed: the teacher's, then those of each column measured."""
    order = {name: index for index, name in enumerate(("teacher", *_measured_columns(run)))}
    rows = [row for row in pictures if row.get("prompt_id") == prompt_id and row.get("column") in order]
    first = min((row["seed"] for row in rows if is_number(row.get("seed"))), default=None)
    chosen = sorted((row for row in rows if row.get("seed") == first), key=lambda row: order[row["column"]])
    shown = [
        {
            **row,
            "prompt": texts.get(prompt_id, ""),
            "path": row.get("path"),
            "caption": decimal(_score(row, metric)) if is_number(_score(row, metric)) else "",
        }
        for row in chosen
    ]
    groups, _ = group_pictures(shown, RANKED_BYTES // (2 * NUM_RANKED))
    return groups[0] if groups else PromptPictures(texts.get(prompt_id, ""), "", "", ())
