"""Evaluating a run on tiny real models: what is written, what is not made twice, and what is refused."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.config import Recipe
from clipgraft.data.formats import load_dataset
from clipgraft.errors import CheckpointError, UserError, is_user_error, one_line
from clipgraft.evaluation import evaluate as recipes
from clipgraft.evaluation import features
from clipgraft.evaluation.evaluate import evaluate, name_grafts
from clipgraft.evaluation.features import FeatureStore
from clipgraft.evaluation.figures import METRICS
from clipgraft.evaluation.prompt_sets import EvaluationPrompt
from clipgraft.evaluation.results import PLAIN, RANDOM, TEACHER, Evaluation
from clipgraft.evaluation.scores import load_pixels
from clipgraft.evaluation.variants import real_images
from clipgraft.flatland import draw_scene, fidelity_prompts
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import load_clip, save_clip
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder
from clipgraft.whole_run import run_all
from helpers import call, refused
from two_processes import run_in_two_processes

EXAMPLE = json.loads((Path(__file__).parent / "example_evaluation.json").read_text())
BRIDGES = {"before": "bridge_before", "after": "bridge"}
SETTINGS = {
    "evaluate.num_prompts": 4,
    "evaluate.num_inference_steps": 2,
    "evaluate.num_images_per_prompt": 2,
}
OPTIONS = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of tiny models, not evaluated; 8 of its images are for testing."""
    folder = tmp_path_factory.mktemp("evaluated")
    recipe = Recipe.model_validate(
        {
            "data": {"source": str(tiny.write_flickr8k(folder / "data", 48))},
            "clip": {"name": str(tiny.write_clip(folder / "clip"))},
            "base": {"name": str(tiny.write_base(folder / "base"))},
            "finetune": {"batch_size": 8, "num_epochs": 1, "learning_rate": 1e-3},
            "bridge": {"num_epochs": 0},
            "generate": {"num_inference_steps": 1},
        }
    )
    from clipgraft.runs.run import Run

    with Run.begin(folder / "run", recipe) as run:
        run_all(recipe, run.path)
    return folder / "run"


@pytest.fixture(scope="module")
def record(run_dir, one_thread):
    return evaluate_run(run_dir, SETTINGS | {"evaluate.force": True})


def as_json(evaluation: Evaluation) -> dict:
    return json.loads(evaluation.to_json())


def evaluate_run(*args, **options) -> dict:
    return as_json(recipes.evaluate_run(*args, **options))


def evaluate_grafts(*args, **options) -> dict:
    return as_json(recipes.evaluate_grafts(*args, **options))


def evaluate_recipe(*args, **options) -> dict:
    return as_json(recipes.evaluate_recipe(*args, **options))


def drawn_rows(folder: Path) -> int:
    logs = folder.glob("images-*.jsonl")
    return sum(bool(line.strip()) for log in logs for line in log.read_text().splitlines())


def without_time(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("environment", "seconds")}


def test_record_has_the_keys_of_the_worked_example(record, run_dir):
    written = json.loads((run_dir / "evaluate" / "evaluation.json").read_text())
    assert written.keys() == record.keys() == EXAMPLE.keys()
    for name in ("settings", "data"):
        assert written[name].keys() >= EXAMPLE[name].keys()
    for rows in ("variants", "prompt_sets", "prompts", "figures", "differences", "counts", "images"):
        assert written[rows][0].keys() == EXAMPLE[rows][0].keys(), rows
    assert written["nearest_training_images"][0].keys() == EXAMPLE["nearest_training_images"][0].keys()
    for name, metric in (written["metrics"] | EXAMPLE["metrics"]).items():
        assert metric.keys() == EXAMPLE["metrics"]["cmmd"].keys()
        assert name in METRICS


@pytest.mark.parametrize("which", ["written", "example"])
def test_every_row_names_columns_sets_and_metrics_that_there_are(record, which):
    found = record if which == "written" else EXAMPLE
    columns = {column["name"] for column in found["variants"]}
    sets = {each["name"] for each in found["prompt_sets"]}
    ids = {prompt["id"] for prompt in found["prompts"]}
    assert {row["metric"] for row in found["figures"]} <= found["metrics"].keys()
    assert {row["variant"] for row in found["figures"] + found["counts"] + found["images"]} <= columns
    assert {row["prompt_set"] for row in found["figures"] + found["differences"] + found["counts"]} <= sets
    assert {row["prompt_id"] for row in found["images"]} <= ids
    assert {row[end] for row in found["differences"] for end in ("baseline", "variant")} <= columns


def test_every_figure_stands_between_floors_and_ceilings_with_an_interval(record):
    roles = {column["name"]: column["role"] for column in record["variants"]}
    by_metric: dict[str, set[str]] = {}
    for row in record["figures"]:
        by_metric.setdefault(row["metric"], set()).add(roles[row["variant"]])
    for metric in ("clip_score_raw", "clip_score_2.5", "clip_r_precision", "cmmd", "kid", "fid"):
        assert by_metric[metric] == {"measured", "floor", "ceiling"}, metric
    for metric in ("same_seed_psnr", "state_error_words", "text_to_image_recall@1"):
        assert by_metric[metric] == {"measured", "floor"}, metric  # against the teacher
    for row in record["figures"]:
        if row["metric"] == "clip_score_raw":
            assert row["interval"][0] <= row["value"] <= row["interval"][1]
            assert row["interval_method"] == "bca"


def test_differences_are_over_the_same_prompts_and_seeds(record):
    scores = {
        column: {
            (row["prompt_id"], row["seed"]): row["scores"]["clip_score_raw"]
            for row in record["images"]
            if row["variant"] == column
        }
        for column in ("before", "after")
    }
    expected = sum(scores["after"][key] - value for key, value in scores["before"].items()) / 8
    found = [
        row
        for row in record["differences"]
        if (row["metric"], row["baseline"], row["variant"]) == ("clip_score_raw", "before", "after")
    ]
    assert [row["value"] for row in found] == pytest.approx([expected])
    assert found[0]["num"] == 4


def test_objects_give_the_figures_of_folders_and_write_nothing(record, run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    grafts = {name: Graft.from_pretrained(run_dir / stage / "graft") for name, stage in BRIDGES.items()}
    base = FrozenBase.load(str(run_dir.parent / "base"))
    data = load_dataset(run_dir.parent / "data")
    found = evaluate(
        {"teacher": None, **grafts},
        base,
        data,
        scorer=load_clip(str(run_dir.parent / "clip")),
        num_prompts=4,
        num_inference_steps=2,
        num_images_per_prompt=2,
        force=True,
    )
    assert not list(tmp_path.iterdir())
    differences = {row.metric: row.value for row in found.difference("before", "after")}
    for metric in ("clip_score_raw", "state_error_words", "same_seed_cosine"):
        expected = next(
            row["value"]
            for row in record["differences"]
            if (row["metric"], row["baseline"], row["variant"]) == (metric, "before", "after")
        )
        # Folders run on an engine, a base that is given does not.
        assert differences[metric] == pytest.approx(expected, abs=0.01), metric
    assert "after - before" in found.table()


def test_unknown_setting_names_the_nearest_one():
    with pytest.raises(UserError, match="unknown setting 'num_prompt'; did you mean 'num_prompts'"):
        evaluate({"teacher": None}, "flatland", num_prompt=4)


def test_scorer_that_is_not_independent_is_said(record):
    assert record["settings"]["scorer"]["is_independent"] is False
    assert any("not independent" in note for note in record["notes"])


def test_scorer_is_independent_unless_a_graft_has_it_or_was_tuned_from_it(run_dir, tmp_path):
    recipe = Recipe.model_validate(
        {"data": {"source": str(run_dir.parent / "data")}, "evaluate": {"num_prompts": 1, "batch_size": 2}}
    )
    settings = recipe.evaluate.model_copy(update={"num_inference_steps": 1})
    graft, found = run_dir / "bridge" / "graft", {}
    scorers = {
        "another": tiny.write_clip(tmp_path / "another", seed=7),
        "tuned": run_dir / "finetune" / "clip",
        "as it was before": run_dir.parent / "clip",
    }
    for name, scorer in scorers.items():
        own = settings.model_copy(update={"scorer": str(scorer)})
        record = evaluate_grafts(recipe.model_copy(update={"evaluate": own}), [graft], tmp_path / "out")
        notes = [note for note in record["notes"] if "not independent" in note]
        found[name] = record["settings"]["scorer"]["is_independent"], "".join(notes)[:50]
    assert found == {
        "another": (True, ""),
        "tuned": (False, "The scorer is the CLIP of 'bridge' itself, so CLIP"),
        "as it was before": (False, "The scorer is the CLIP that 'bridge' was tuned fro"),
    }


def test_scorer_that_is_the_teachers_own_clip_is_not_independent(run_dir, tmp_path):
    base, clip = FrozenBase.load(str(run_dir.parent / "base")), tiny.build_clip()
    clip.model.config.text_config.hidden_size = tiny.TEACHER_WIDTH
    clip.model.text_model = base.text_encoder
    clip.model.text_projection = torch.nn.Linear(tiny.TEACHER_WIDTH, 8, bias=False)
    clip.model.config.text_config = base.text_encoder.config
    save_clip(clip, tmp_path / "clip")
    recipe = Recipe.model_validate(
        {"data": {"source": str(run_dir.parent / "data")}}
        | {"evaluate": {"num_prompts": 1, "num_inference_steps": 1, "scorer": str(tmp_path / "clip")}}
    )
    record = evaluate_grafts(recipe, [run_dir / "bridge" / "graft"], tmp_path / "out")
    assert record["settings"]["scorer"]["is_independent"] is False
    assert "The scorer is the CLIP of 'teacher' itself" in record["notes"][0]


def test_clip_of_flatland_scores_no_other_bases_pictures_unless_it_is_named(run_dir, tmp_path, capsys):
    options = ["--graft", run_dir / "bridge" / "graft", "--data", run_dir.parent / "data"]
    message = refused(capsys, "evaluate", *options, "--out", tmp_path / "out")
    assert "no CLIP is named to score images with" in message
    assert "add --scorer" in message
    assert not (tmp_path / "out").exists()


def test_prompts_are_held_out_captions_and_the_reference_other_photographs(record):
    images = [prompt["image_id"] for prompt in record["prompts"]]
    assert images == [f"{number:04d}.jpg" for number in range(40, 44)]
    assert record["data"]["num_reference_images"] == 4


def test_nearest_training_images_are_shown_beside_the_pictures(record, run_dir):
    rows = record["nearest_training_images"]
    assert rows == sorted(rows, key=lambda row: -row["cosine"])
    for row in rows:
        assert int(row["image_id"].removesuffix(".jpg")) < 32  # training's
        assert (run_dir / "evaluate" / row["training_file"]).is_file()
        assert (run_dir / "evaluate" / row["file"]).is_file()


def test_second_call_draws_nothing_and_says_the_same(record, run_dir):
    before = drawn_rows(run_dir / "evaluate")
    again = evaluate_run(run_dir, SETTINGS | {"evaluate.force": True})
    assert drawn_rows(run_dir / "evaluate") == before == 8 * 5
    assert without_time(again) == without_time(record)


def test_damaged_and_missing_pictures_are_drawn_again(record, run_dir, tmp_path):
    folder = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    first, second, third = (folder / row["file"] for row in record["images"][:3])
    expected = load_pixels([first, second, third])
    first.unlink()
    second.write_bytes(b"no picture")
    log = folder / "images-0.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2] + lines[3:])[:-20])  # the third is not recorded, the last one half
    again = evaluate_run(run_dir, SETTINGS | {"evaluate.force": True}, out=folder)
    # Three in a batch in the place of eight round otherwise.
    torch.testing.assert_close(load_pixels([first, second, third]), expected, atol=1.01 / 255, rtol=0)
    assert drawn_rows(folder) == 8 * 5 - 1 + 4  # the row that was cut is still there, as no JSON
    for ours, theirs in zip(record["figures"], again["figures"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-2, abs=1e-3), ours


def test_other_weights_are_drawn_anew_and_alone(record, run_dir, tmp_path):
    out = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    copy = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    shutil.rmtree(copy / "bridge")
    shutil.copytree(run_dir / "bridge_before", copy / "bridge")
    again = evaluate_run(copy, SETTINGS | {"evaluate.force": True}, out=out)
    # "after" is now "before", whose pictures are there; its random bridge has another text tower.
    assert drawn_rows(out) - drawn_rows(run_dir / "evaluate") == 8
    sums = {column["name"]: column["sha256"] for column in again["variants"]}
    assert sums["before"] == sums["after"]
    null = [row for row in again["differences"] if (row["baseline"], row["variant"]) == ("before", "after")]
    means = [row for row in null if row["metric"].startswith(("clip_score", "same_seed", "state_error"))]
    assert means
    for row in means:  # equal to the bit, and yet no interval of width zero
        assert (row["value"], row["interval"]) == (0, None)
        assert row["note"] == "no interval: every prompt has the same score"
    found = next(row for row in null if row["metric"] == "clip_r_precision")
    assert found["interval"][0] < found["value"] == 0 < found["interval"][1]


def test_other_settings_are_a_miss(record, run_dir, tmp_path):
    out = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    evaluate_run(run_dir, SETTINGS | {"evaluate.num_prompts": 1, "evaluate.guidance_scale": 2.0}, out=out)
    assert drawn_rows(out) - drawn_rows(run_dir / "evaluate") == 2 * 4  # the floor has no guidance


def test_broken_bridge_is_found_in_the_token_states(record):
    errors = {
        row["variant"]: row["value"] for row in record["figures"] if row["metric"] == "state_error_words"
    }
    assert errors[RANDOM] > 2 * errors["after"]


def test_two_processes_share_the_drawing_and_say_what_one_does(record, run_dir, tmp_path):
    words = ["evaluate", run_dir, "--out", tmp_path / "out", "--force", *OPTIONS]
    run_in_two_processes("-m", "clipgraft", *words)
    logs = [tmp_path / "out" / f"images-{rank}.jsonl" for rank in range(2)]
    assert [sum(bool(line) for line in log.read_text().splitlines()) for log in logs] == [20, 20]
    together = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for ours, theirs in zip(record["figures"], together["figures"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-4), ours


def test_failed_pictures_are_counted_apart_and_never_scored(run_dir, tmp_path):
    base = shutil.copytree(run_dir.parent / "base", tmp_path / "base")
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for name in ("conv_norm_out", "conv_out"):  # finite, as a model has to be; what comes out is not
        tensors[f"decoder.{name}.weight"] *= 1e30
    save_file(tensors, weights, metadata={"format": "pt"})
    recipe = Recipe.model_validate(
        {
            "data": {"source": str(run_dir.parent / "data")},
            "clip": {"name": str(run_dir.parent / "clip")},
            "evaluate": {"num_prompts": 2, "num_inference_steps": 1, "force": True},
        }
    )
    encoders = {"teacher": None, "graft": run_dir / "bridge" / "graft"}
    record = evaluate_recipe(recipe, encoders, tmp_path / "out", base=str(base))
    assert all(row["failed_nan"] == row["num_images"] == 2 for row in record["counts"])
    assert all(row["scores"] == {} for row in record["images"])
    real = [row["variant"] for row in record["figures"] if row["metric"] == "clip_score_raw"]
    assert real == ["real_images"]


def test_column_without_a_picture_is_left_out_of_the_distances_alone(run_dir, tmp_path):
    graft = Graft.from_pretrained(run_dir / "bridge" / "graft")
    next(graft.text_encoder.bridge.parameters()).data.fill_(3e38)  # finite; its states are not
    graft.save_pretrained(tmp_path / "broken" / "graft")
    recipe = Recipe.model_validate(
        {
            "data": {"source": str(run_dir.parent / "data")},
            "evaluate": {"num_prompts": 3, "num_inference_steps": 1, "force": True}
            | {"scorer": str(run_dir.parent / "clip")},
        }
    )
    record = evaluate_grafts(recipe, [tmp_path / "broken" / "graft"], tmp_path / "out")
    found = {row["variant"]: row for row in record["figures"] if row["metric"] == "kid"}
    assert found[TEACHER]["value"] is not None
    assert (found[TEACHER]["num"], found["broken"]["num"]) == (3, 0)
    assert found["broken"]["value"] is None
    lack = "KID was not computed: it needs 2 images of each set, got 0 generated and 5 real ones"
    assert found["broken"]["note"] == lack
    assert f"{lack} (broken)." in record["notes"]
    assert "--force" not in "".join(record["notes"])


def test_drawing_of_a_scene_is_never_taken_for_anothers(tmp_path):
    prompts = [EvaluationPrompt(each.text, 0, (PLAIN,), scene=each.scene) for each in fidelity_prompts()[:3]]
    processes = PartialState(cpu=True)
    first = real_images(prompts[:2], tmp_path, processes)
    second = real_images(prompts[1:], tmp_path, processes)  # as with another --num-prompts
    assert second[0] == first[1]
    fresh = replace(prompts[2].scene, look=f"{prompts[2].scene.look}/fresh")
    assert (np.asarray(Image.open(second[1][0])) == np.asarray(draw_scene(fresh))).all()


def test_features_on_a_full_disk_are_the_users_to_mend(tmp_path):
    store = FeatureStore(tmp_path, PartialState(cpu=True))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            store.features("", "extractor", ["a"], ["sum"], lambda items: torch.ones(len(items), 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_user_error(raised.value)
    assert one_line(raised.value).startswith("no space left on the disk")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_features_that_are_lost_in_between_are_never_left_out(tmp_path):
    def extract(items):
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()
        return torch.ones(len(items), 2)

    names = [str(number) for number in range(features.ITEMS_PER_ENTRY + 1)]
    with pytest.raises(CheckpointError, match="run the same command again"):
        FeatureStore(tmp_path, PartialState(cpu=True)).features("", "extractor", names, names, extract)


def test_prompts_of_a_file_are_drawn_without_any_data(run_dir, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("A cat\n\n  كلب على الشاطئ 🐶 \n", encoding="utf-8")
    options = ["--prompts", tmp_path / "prompts.txt", "--scorer", run_dir.parent / "clip", *OPTIONS]
    graft = run_dir / "bridge" / "graft"
    assert call("evaluate", "--graft", graft, "--out", tmp_path / "out", *options) == 0
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [prompt["prompt"] for prompt in record["prompts"]] == ["A cat", "كلب على الشاطئ 🐶"]
    assert [each["name"] for each in record["prompt_sets"]] == ["prompts_file"]
    assert [column["name"] for column in record["variants"]][:2] == ["teacher", "bridge"]
    assert "prompts from the file (2)" in capsys.readouterr().out


def test_columns_are_named_after_folders_and_numbered_where_equal():
    folders = [Path("a/graft"), Path("b/graft"), Path("c/a"), Path("other"), Path("a-2")]
    assert list(name_grafts(folders)) == ["a", "b", "a-2", "other", "a-2-2"]


@pytest.mark.parametrize("name", ["teacher", "random_bridge", "real_images"])
def test_graft_with_the_name_of_a_floor_or_ceiling_is_refused(tmp_path, capsys, name):
    options = ["--graft", tmp_path / name / "graft", "--scorer", "flatland", "--out", tmp_path / "out"]
    message = refused(capsys, "evaluate", *options)
    assert f"would be the variant '{name}'" in message
    assert "rename its folder" in message


def test_no_prompts_are_refused_with_the_least_number(run_dir, tmp_path, capsys):
    options = ["--out", tmp_path / "out", "--set", "evaluate.num_prompts=0"]
    assert "num_prompts must be 1 or more" in refused(capsys, "evaluate", run_dir, *options)
    for number in (0, -3):
        message = refused(capsys, "evaluate", run_dir, "--num-prompts", number)
        assert message == f"error: --num-prompts must be 1 or more; got {number}"


def test_command_prints_figures_floors_and_notes(run_dir, capsys, tmp_path):
    assert call("evaluate", run_dir, *OPTIONS) == 0
    printed = capsys.readouterr().out
    for words in ("teacher", "after - before", "random_bridge", "chance", "note: The scorer is the CLIP of"):
        assert words in printed
    for words in ("images: 40", "seed: 0, steps: 2, guidance: 7.5", "scorer: clip", "bicubic to 32"):
        assert words in printed.rpartition("generated and scored: ")[2]
    assert (
        "CMMD was not computed: it needs 100 images of each set, got 4 generated and 4 real ones"
        in " ".join(printed.split())
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "prompts file not found"),
        ("\n \n", "holds no prompt; write one a line"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_prompts_file_without_prompts_is_refused(run_dir, tmp_path, capsys, text, message):
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(capsys, "evaluate", run_dir, "--out", tmp_path / "out", "--prompts", path)


def test_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert "run folder not found" in refused(capsys, "evaluate", tmp_path / "nowhere")
    assert "holds no run (no recipe.toml)" in refused(capsys, "evaluate", tmp_path)


def test_run_without_weights_is_refused_with_how_to_finish_it(run_dir, tmp_path, capsys):
    shutil.copy(run_dir / "recipe.toml", tmp_path / "recipe.toml")
    message = refused(capsys, "evaluate", tmp_path)
    assert "has no weights to draw with (no bridge/graft)" in message
    assert "--resume" in message


def test_run_of_an_older_version_is_refused_with_the_setting(run_dir, tmp_path, capsys):
    text = (run_dir / "recipe.toml").read_text() + "\n[evaluation]\nnumber = 3\n"
    (tmp_path / "recipe.toml").write_text(text)
    message = refused(capsys, "evaluate", tmp_path)
    assert "was written by a version with other settings" in message
    assert "evaluation" in message


def test_scorer_out_of_reach_is_said_with_what_to_fetch_before_anything_is_drawn(
    run_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    scorer = "openai/clip-vit-large-patch14"
    message = refused(capsys, "evaluate", run_dir, "--out", tmp_path / "out", "--scorer", scorer, *OPTIONS)
    assert f"hf download {scorer}" in message
    assert not list((tmp_path / "out").rglob("*.png"))


def test_run_and_graft_together_or_neither_are_refused(run_dir, tmp_path, capsys):
    assert "takes the folder of a run" in refused(capsys, "evaluate", run_dir, "--graft", tmp_path)
    assert "takes the folder of a run" in refused(capsys, "evaluate")


def test_full_disk_is_one_line_and_leaves_the_old_evaluation_untouched(record, run_dir, tmp_path, capsys):
    out = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    before = (out / "evaluation.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes: figures do not fit
    try:
        message = refused(capsys, "evaluate", run_dir, "--out", out, "--force", *OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith("error: no space left")
    assert (out / "evaluation.json").read_bytes() == before


@pytest.mark.slow
def test_broken_bridge_is_found_by_every_fidelity_metric(tmp_path):
    """On flatland: a graft of the teacher's own text tower against the same with an untrained map."""
    base = FrozenBase.load("flatland", components=("tokenizer", "text_encoder"))
    identity = Bridge(base.text_encoder.config.hidden_size, base.text_encoder.config.hidden_size)
    identity.set_identity()
    eos = base.tokenizer.eos_token_id
    encoder = GraftedTextEncoder.graft(base.text_encoder, identity, base.empty_prompt_embeds(), eos)
    record = BaseRecord(name="flatland", sums={})
    Graft(encoder, base.tokenizer, record).save_pretrained(tmp_path / "graft")
    recipe = Recipe.model_validate(
        {
            "data": {"max_train_images": 64, "max_test_images": 40},
            "evaluate": {"num_prompts": 12, "num_inference_steps": 8},
        }
    )
    record = evaluate_recipe(recipe, {"teacher": None, "whole": tmp_path / "graft"}, tmp_path / "out")
    found = {
        row["metric"]: row
        for row in record["differences"]
        if (row["prompt_set"], row["baseline"], row["variant"]) == ("plain", RANDOM, "whole")
    }
    metrics = ["prompt_fidelity", "clip_score_raw", "clip_r_precision"]
    metrics += [name for name in METRICS if name.startswith(("same_seed", "state_error"))]
    for metric in metrics:
        sign = 1 if METRICS[metric].higher_is_better else -1
        assert min(sign * bound for bound in found[metric]["interval"]) > 0, found[metric]
