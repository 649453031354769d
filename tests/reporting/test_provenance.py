"""Time, memory and energy."""

from example_run import write_json

from clipgraft.config import build_recipe, to_toml
from clipgraft.reporting.provenance import (
    WATTS_OF_A_CORE,
    WATTS_OF_A_GPU,
    resources_table,
    settings_tables,
    watt_hours,
)
from clipgraft.reporting.run_data import read_run


def test_energy_is_cores_and_gpu_at_a_stated_draw():
    used = {"seconds": 3600, "processor_seconds": 7200}
    assert watt_hours(used, {"device": "cpu"}) == 2 * WATTS_OF_A_CORE
    assert watt_hours(used, {"device": "cuda"}) == 2 * WATTS_OF_A_CORE + WATTS_OF_A_GPU
    assert watt_hours({}, {}) is None


def test_time_is_summed_over_stages_and_memory_is_not(run_dir):
    for stage, seconds, peak in (("finetune", 60, 10**9), ("bridge", 30, 2 * 10**9)):
        used = {"seconds": seconds, "processor_seconds": seconds, "peak_memory_bytes": peak}
        write_json(run_dir / stage / "resources.json", used)
    table = resources_table(read_run(run_dir))
    assert table.rows[-1][:4] == ("total", "1 min 30 s", "1 min 30 s", "2.00 GB")
    assert "Energy is estimated" in table.note


def test_settings_of_the_data_are_shown_where_they_are_set(run_dir):
    before = settings_tables(read_run(run_dir))
    assert dict(before["Data"])["on damaged"] == "stop"
    assert dict(before["Data"])["max val images"] == "all"
    assert dict(before["Fine-tuning"])["resize mode"] == "CLIP's own"
    assert not {"caption field", "separator", "num train images"} & dict(before["Data"]).keys()
    data = {"source": "/home/someone/list.csv", "caption_field": "words", "separator": "bar"}
    tuning = {"resize_mode": "squash", "crop_scale": 0.5}
    recipe = build_recipe({"data": data | {"on_damaged": "skip"}, "finetune": tuning})
    (run_dir / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    after = settings_tables(read_run(run_dir))
    shown = {"source": "list.csv", "caption field": "words", "separator": "bar", "on damaged": "skip"}
    assert shown.items() <= dict(after["Data"]).items()
    assert {"resize mode": "squash", "crop scale": "0.5"}.items() <= dict(after["Fine-tuning"]).items()


def test_settings_of_a_stage_that_was_left_out_are_not_shown(run_dir):
    assert not {"Refinement", "Distillation"} & settings_tables(read_run(run_dir)).keys()
    figures = {"loss": 0.25, "num_words": 1}
    for stage in ("refine", "distill"):
        (run_dir / stage).mkdir()
        write_json(run_dir / stage / "metrics.json", {"stage": stage, "schema_version": 1} | figures)
    shown = settings_tables(read_run(run_dir))
    assert dict(shown["Refinement"])["crop"] == "buckets"
    assert dict(shown["Distillation"])["num epochs"] == "0"
