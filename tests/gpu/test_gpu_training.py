"""Training on a GPU: float16's scaler, bfloat16, resuming, frozen weights, compiling."""

import json

import pytest
import torch
from gpu_stages import cut_back, losses_of, weights_of

import tiny
from clipgraft.bridging.fit import fit_bridge
from clipgraft.data.formats import load_dataset
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from clipgraft.models.weights import module_sha256
from clipgraft.training.objectives import AutoencoderObjective
from helpers import states_of
from regression import Regression, train
from tiny import fit

pytestmark = pytest.mark.cuda


def newest_state(folder) -> dict:
    """Values of the newest checkpoint."""
    newest = max((folder / "checkpoints").iterdir())
    return json.loads((newest / "state.json").read_text())


def scale_in(folder) -> float:
    """Scale of the newest checkpoint's gradient scaler."""
    return newest_state(folder)["scaler"]["scale"]


def steps_skipped_in(folder) -> int:
    return newest_state(folder)["skipped_steps"]


def test_fp16_overflow_skips_its_step_and_lowers_the_scale(cuda, tmp_path):
    seen = []

    def overflow(objective, loss):
        seen.append(objective.linear.weight.detach().clone())
        return loss * (float("inf") if objective.num_forwards == 4 else 1e-3)  # within float16 otherwise

    _, result = train(tmp_path, Regression(overflow), device=cuda, mixed_precision="fp16")
    assert result.skipped_steps == 1
    assert torch.equal(seen[3], seen[4])
    assert not torch.equal(seen[4], seen[5])
    assert scale_in(tmp_path) == 65536 / 2


def test_fp16_gradients_beyond_its_range_find_a_scale(cuda, tmp_path):
    objective = Regression(lambda _, loss: 2 * loss)
    _, result = train(tmp_path, objective, device=cuda, mixed_precision="fp16", num_epochs=20)
    assert 1 <= result.skipped_steps < 10
    assert scale_in(tmp_path) < 65536
    assert result.epoch_mean_loss[-1] < 0.5 * result.epoch_mean_loss[1]


def test_models_lent_to_a_stage_are_put_back(device, world):
    clip, base = load_clip(str(world.clip)), FrozenBase.load(str(world.base))
    lent = clip.model, *base.modules.values()
    before = states_of(*lent)
    fit_bridge(clip, base, load_dataset(world.data), device=device, num_epochs=0, allow_few_captions=True)
    assert states_of(*lent) == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32_with_float32_weights(device, precision, world, tmp_path):
    if device == "cpu" and precision == "fp16":
        pytest.skip("float16 training needs a GPU")
    # One batch of everything, so that steps skipped until the scaler has a scale do not change the others.
    settings = {"batch_size": world.num_train_images, "captions_per_image": 5, "num_epochs": 16}
    for name in ("no", precision):
        world.run("finetune", device, tmp_path / name, mixed_precision=name, **settings)
    assert {tensor.dtype for tensor in weights_of("finetune", tmp_path / precision).values()} == {
        torch.float32
    }
    expected, found = losses_of(tmp_path / "no"), losses_of(tmp_path / precision)
    skipped = steps_skipped_in(tmp_path / precision)
    assert skipped <= (8 if precision == "fp16" else 0)
    close = {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found[:skipped], expected[:1].expand(skipped), **close)
    torch.testing.assert_close(found[skipped:], expected[: len(expected) - skipped], **close)
    assert expected[-1 - skipped] < 0.8 * expected[0]  # else any step would do


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("stage", ["finetune", "refine", "distill"])
def test_resumed_stage_ends_in_the_same_bits(device, stage, precision, world, tmp_path, deterministic):
    if device == "cpu" and precision != "no":
        pytest.skip("float32 alone is rehearsed")
    settings = {"checkpoint_every": 3, "save_total_limit": 9, "mixed_precision": precision}
    world.run(stage, device, tmp_path / "whole", **settings)
    cut_back(tmp_path / "whole", tmp_path / "cut", step=3)
    world.run(stage, device, tmp_path / "cut", resume=True, **settings)
    whole, resumed = weights_of(stage, tmp_path / "whole"), weights_of(stage, tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize("stage", ["finetune", "distill"])
def test_stage_has_the_losses_of_the_cpu(cuda, stage, world, tmp_path, record_property):
    for name in ("cpu", cuda):
        world.run(stage, name, tmp_path / name)
    expected, found = losses_of(tmp_path / "cpu"), losses_of(tmp_path / cuda)
    record_property("largest_difference", float((found - expected).abs().max()))
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)


def test_refining_measures_the_errors_of_the_cpu(device, world, tmp_path):
    # Not its losses: their noise is drawn on the device, and a GPU's numbers are others.
    expected, found = (
        world.run("refine", name, tmp_path / str(number)) for number, name in enumerate(("cpu", device))
    )
    assert found.before == pytest.approx(expected.before, rel=0.01)


def test_frozen_tower_keeps_its_hash(device, world, tmp_path):
    world.run("finetune", device, tmp_path / "out", frozen_text_layers=-1, mixed_precision="bf16")
    before, after = (load_clip(folder).model for folder in (world.clip, tmp_path / "out" / "clip"))
    assert module_sha256(after.text_model) == module_sha256(before.text_model)
    assert module_sha256(after.vision_model) != module_sha256(before.vision_model)


def test_refining_changes_the_bridge_alone(device, world, tmp_path):
    world.run("refine", device, tmp_path, mixed_precision="bf16")
    before, after = weights_of("refine", world.graft().parent), weights_of("refine", tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"bridge.linear.weight", "bridge.bias"}


def test_distilling_holds_the_empty_prompt(device, world, tmp_path, record_property):
    moved = world.run("distill", device, tmp_path, mixed_precision="bf16").empty_prompt.root_mean_square
    record_property("root_mean_square", moved)
    assert moved < 1e-4


def test_compiled_towers_have_the_losses_of_eager_ones(cuda, world, tmp_path, record_property):
    for is_compiled in (False, True):
        world.run("finetune", cuda, tmp_path / str(is_compiled), compile=is_compiled, num_epochs=1)
    expected, found = losses_of(tmp_path / "False"), losses_of(tmp_path / "True")
    record_property("largest_difference", float((found - expected).abs().max()))
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)


class Pictures:
    """Batches of an autoencoder, on the GPU."""

    def __len__(self):
        return 8

    def epoch(self, epoch, start):
        for index in range(start, 8):
            generator = torch.Generator().manual_seed(index)
            yield {"vae_pixel_values": torch.rand(4, 3, 16, 16, generator=generator).mul(2).sub(1).cuda()}


def test_captured_steps_are_the_eager_ones(cuda, tmp_path, monkeypatch, record_property):
    weights, losses = [], []
    for is_captured in (False, True):
        torch.manual_seed(0)
        objective = AutoencoderObjective(tiny.build_pipeline().vae, 1e-6)
        monkeypatch.setattr(AutoencoderObjective, "has_fixed_shapes", is_captured)
        out = tmp_path / str(is_captured)
        fit(
            objective,
            Pictures(),
            run_dir=out,
            device=cuda,
            num_epochs=2,
            mixed_precision="bf16",
            ema_decay=0.9,
        )
        weights.append(torch.cat([each.detach().flatten() for each in objective.parameters()]))
        losses.append(losses_of(out))
    record_property("largest_difference", float((losses[0] - losses[1]).abs().max()))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=0.02, atol=2e-3)
