"""Weights between two CLIPs."""

import pytest
import torch
from tiny_tuning import recipe_of

import tiny
from clipgraft.errors import CheckpointError
from clipgraft.finetuning.finetune import load_inputs
from clipgraft.finetuning.wise_ft import InterpolationResult, interpolate, set_between
from clipgraft.models.clip import load_clip
from clipgraft.runs.run import Run
from helpers import states_of


def test_ends_of_the_interpolation_equal_both_models():
    first, last, middle = (tiny.build_clip(seed).model for seed in (0, 1, 2))
    for alpha, model in ((0.0, first), (1.0, last)):
        set_between(middle, first, last, alpha)
        for mine, theirs in zip(middle.parameters(), model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    set_between(middle, first, last, 0.25)
    expected = 0.75 * first.logit_scale + 0.25 * last.logit_scale
    torch.testing.assert_close(middle.logit_scale, expected)


@pytest.mark.integration
def test_interpolation_measures_eleven_alphas_writes_one(world, tmp_path, capsys):
    tiny.write_clip(tmp_path / "after", seed=1)
    clip, data = load_inputs(recipe_of(world))
    result = interpolate(clip, load_clip(tmp_path / "after"), data, output_dir=tmp_path / "out")
    result.print()
    assert "image R@1" in capsys.readouterr().out
    assert Run(tmp_path / "out").result(InterpolationResult).model_dump() == result.model_dump()
    assert [row["alpha"] for row in result.rows] == [k / 10 for k in range(11)]
    assert result.rows[0]["drift_words"] == 0 < result.rows[10]["drift_words"]
    assert (tmp_path / "out/interpolation.png").stat().st_size > 1000
    written = load_clip(tmp_path / "out/clip").model
    ends = [load_clip(path).model for path in (world / "clip", tmp_path / "after")]
    set_between(ends[0], *(load_clip(path).model for path in (world / "clip", tmp_path / "after")), 0.5)
    torch.testing.assert_close(written.visual_projection.weight, ends[0].visual_projection.weight)


def test_interpolated_clips_stay_as_they_were(world):
    clip, data = load_inputs(recipe_of(world))
    after = tiny.build_clip(seed=1)
    clip.model.train()
    after.model.requires_grad_(False)
    before = states_of(clip.model, after.model)
    interpolate(clip, after, data)
    assert states_of(clip.model, after.model) == before


def test_interpolation_refuses_what_has_no_meaning(world):
    clip, data = load_inputs(recipe_of(world))
    with pytest.raises(ValueError, match=r"alpha must be between 0 \(before\) and 1 \(after\); got 1.5"):
        interpolate(clip, clip, data, alpha=1.5)
    other = tiny.build_clip()
    other.model.text_projection = torch.nn.Linear(tiny.TEXT_WIDTH, 4, bias=False)
    with pytest.raises(CheckpointError, match=r"not of one shape.*differing: text_projection\.weight"):
        interpolate(clip, other, data)
