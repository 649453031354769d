"""Best and worst prompts by score, failed images, nearest training images: none picked by hand."""

from collections import defaultdict
from collections.abc import Sequence

from clipgraft.evaluation.results import TEACHER, Evaluation, ImageRow
from clipgraft.generation.contact_sheet import FAILURES
from clipgraft.reporting.embedded_images import PageImage, PromptImages, group_images
from clipgraft.reporting.format import decimal
from clipgraft.reporting.run_data import Run

NUM_RANKED = 3
"""Prompts shown from either end."""
NUM_NEAREST = 4
MAX_FAILED = 12
METRICS = ("prompt_fidelity", "clip_score_raw", "clip_score_2.5")
"""Prompts are ranked by the first of these that was measured; the others break ties."""
RANKED_BYTES = 500_000
NEAREST_BYTES = 200_000


def ranked_prompts(run: Run) -> tuple[dict[str, list[PromptImages]], str]:
    """Return the best and the worst prompts of the last measured variant, and how they were ranked."""
    evaluation, variant = run.evaluation, last_variant(run.evaluation)
    own = [row for row in evaluation.images if row.variant == variant and row.status == "ok"]
    metric = next((name for name in METRICS if any(name in row.scores for row in own)), "")
    if not metric:
        return {}, ""
    by_prompt: dict[int, list[ImageRow]] = defaultdict(list)
    for row in own:
        if metric in row.scores:
            by_prompt[row.prompt_id].append(row)
    ranked = sorted(by_prompt, key=lambda prompt_id: _sort_key(prompt_id, by_prompt[prompt_id], metric))
    num = min(NUM_RANKED, len(ranked) // 2) or len(ranked)
    ends = {"Best": ranked[-num:][::-1], "Worst": ranked[:num]}
    groups = {
        title: [_group(run, prompt_id, metric) for prompt_id in ends[title]]
        for title in (ends if len(ranked) > 1 else {"Best": ends["Best"]})
    }
    title = evaluation.metrics[metric].title if metric in evaluation.metrics else metric
    note = (
        f"Of {len(ranked):,} prompts, ranked by {title} of the variant '{variant}'; ties are broken by the "
        "next score, then by prompt number. Below each image is its own score."
    )
    return groups, note


def last_variant(evaluation: Evaluation) -> str:
    """Return the variant that the run was made for: the last one measured; empty without any."""
    return (evaluation.names() or [""])[-1]


def failed_images(run: Run) -> tuple[list[tuple[str, str, str]], int]:
    """Return prompt, variant and fault of the first images that failed, and how many there are."""
    texts = _prompts(run.evaluation)
    failed = [
        (texts.get(row.prompt_id, "unknown prompt"), row.variant, FAILURES.get(row.status, row.status))
        for row in run.evaluation.images
        if row.status != "ok"
    ]
    failed += [
        (image.prompt, image.variant, FAILURES.get(image.status, image.status))
        for image in run.images
        if image.status != "ok"
    ]
    return failed[:MAX_FAILED], len(failed)


def nearest_training_images(run: Run) -> list[PromptImages]:
    """Pair the images nearest to a training photograph with it, nearest first."""
    texts, groups = _prompts(run.evaluation), []
    for row in run.evaluation.nearest_training_images[:NUM_NEAREST]:
        prompt, photograph = texts.get(row.prompt_id, ""), row.training_file
        pair = [
            PageImage(prompt, row.file, run.evaluation_file(row.file), variant="generated"),
            PageImage(
                prompt,
                photograph,
                run.evaluation_file(photograph),
                variant="nearest photograph",
                caption=f"cosine {decimal(row.cosine)}",
            ),
        ]
        groups += group_images(pair, NEAREST_BYTES // NUM_NEAREST)[0]
    return groups


def _prompts(evaluation: Evaluation) -> dict[int, str]:
    return {prompt.id: prompt.prompt for prompt in evaluation.prompts}


def _sort_key(prompt_id: int, rows: Sequence[ImageRow], metric: str) -> tuple[float, ...]:
    means = []
    for name in (metric, *(name for name in METRICS if name != metric)):
        scores = [row.scores[name] for row in rows if name in row.scores]
        means.append(sum(scores) / len(scores) if scores else 0.0)
    return (*means, -prompt_id)


def _group(run: Run, prompt_id: int, metric: str) -> PromptImages:
    """A prompt's images of the first seed: the teacher's, then those of each graft."""
    evaluation = run.evaluation
    order = {name: index for index, name in enumerate((TEACHER, *evaluation.names()))}
    rows = [row for row in evaluation.images if row.prompt_id == prompt_id and row.variant in order]
    seed = min(row.seed for row in rows)
    prompt = _prompts(evaluation).get(prompt_id, "")
    shown = [
        PageImage(
            prompt,
            row.file,
            run.evaluation_file(row.file),
            seed=row.seed,
            variant=row.variant,
            status=row.status,
            caption=decimal(row.scores[metric]) if metric in row.scores else "",
        )
        for row in sorted(rows, key=lambda row: order[row.variant])
        if row.seed == seed
    ]
    return group_images(shown, RANKED_BYTES // (2 * NUM_RANKED))[0][0]
