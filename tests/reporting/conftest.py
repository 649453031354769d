"""A run's folder as the stages leave it."""

import pytest
from example_run import (
    DATA,
    ENVIRONMENT,
    RECALL,
    STATES,
    log_rows,
    picture_row,
    write_json,
    write_log,
    write_pictures,
)

from clipgraft.config import Recipe, to_toml


@pytest.fixture
def run_dir(tmp_path):
    """A whole run: three epochs, recall before and after, a bridge with its MLP, two pictures."""
    folder = tmp_path / "demo"
    for stage in ("finetune", "bridge", "generate"):
        (folder / stage).mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(Recipe()), encoding="utf-8")
    write_json(folder / "environment.json", ENVIRONMENT)
    write_json(folder / "data.json", DATA)
    write_log(folder / "finetune" / "log.jsonl", log_rows(3, 20))
    after = {key: value if key.startswith("num") else value + 0.2 for key, value in RECALL.items()}
    finetune = {"before": RECALL, "after": after, "num_steps": 60, "num_epochs": 3, "skipped_steps": 0}
    write_json(
        folder / "finetune" / "metrics.json", finetune | {"epoch_mean_loss": [2.8, 1.5, 0.8], "seconds": 754}
    )
    residual = {"relative_error": STATES["relative_error"] | {"words": 0.301}, "cosine": STATES["cosine"]}
    bridge = {"linear": STATES, "residual": residual, "num_captions": 29000, "num_held_out_captions": 1000}
    write_json(folder / "bridge" / "metrics.json", bridge | {"seconds": 61.2})
    rows = [
        picture_row("dog_seed0.png", "A dog running on the beach at sunset"),
        picture_row("garden_seed0.png", "A colorful garden with blooming flowers"),
    ]
    write_pictures(folder / "generate", rows)
    return folder
