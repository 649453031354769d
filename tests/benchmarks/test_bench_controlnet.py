"""The ControlNet's benchmark: what it trains, what it takes for an outline, and its figures by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image, ImageDraw

import tiny
from clipgraft.data.transforms import tokenize
from clipgraft.models.base import FrozenBase
from clipgraft.models.weights import module_sha256
from clipgraft.training.objectives import DenoisingObjective

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from bench_controlnet import (
    CAPTION_DROP,
    EMBEDDING,
    SNR_GAMMA,
    ControlNetObjective,
    OutlineBatches,
    Task,
    build_controlnet,
    likeness,
    outline,
    summarize,
)


@pytest.fixture
def base(tmp_path):
    return FrozenBase.load(str(tiny.write_base(tmp_path / "base")))


@pytest.fixture
def objective(base):
    torch.manual_seed(0)
    return ControlNetObjective(build_controlnet(base), base)


@pytest.fixture
def batches(base):
    torch.manual_seed(1)
    return OutlineBatches(
        torch.randn(5, 4, 4, 4).half(),
        (torch.rand(5, 32, 32) < 0.1).to(torch.uint8) * 255,
        tokenize(tiny.CAPTIONS, base.tokenizer, pad_to_context_length=True),
        batch_size=2,
        seed=3,
    )


def test_untrained_controlnet_leaves_the_noise_error(base, objective, batches):
    plain = DenoisingObjective(
        base.unet,
        base.text_encoder,
        alphas_cumprod=base.scheduler.alphas_cumprod,
        empty_input_ids=objective.empty_input_ids,
        caption_drop=CAPTION_DROP,
        snr_gamma=SNR_GAMMA,
    )
    batch = next(batches.epoch(0, 0))
    losses = []
    for each in (plain, objective, plain):  # the last shows that no hook is left on the U-Net
        torch.manual_seed(2)
        losses.append(each(batch)[0].item())
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-6)


def test_hint_layers_pass_outlines_on(base, objective, batches):
    torch.manual_seed(0)
    stock = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=EMBEDDING)
    outlines, sizes = next(batches.epoch(0, 0))["outlines"], []
    for controlnet in (stock, objective.controlnet):
        hints, values = controlnet.controlnet_cond_embedding, outlines
        for layer in (hints.conv_in, *hints.blocks):
            values = torch.nn.functional.silu(layer(values))
        sizes.append(values.std((0, 2, 3)).mean().item())  # within channels: a bias is no outline
        assert not hints.conv_out(values).any()
    assert sizes[1] > 10 * sizes[0]


def test_only_the_controlnet_learns(base, objective, batches, tmp_path):
    def sums():
        return [module_sha256(each) for each in (base.unet, base.text_encoder, objective.controlnet)]

    before = sums()
    tiny.fit(objective, batches, run_dir=tmp_path / "run", num_epochs=2, learning_rate=1e-2)
    after = sums()
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert float(objective.controlnet.controlnet_mid_block.weight.detach().abs().max()) > 0


def test_outlines_are_white_where_colours_meet():
    image = Image.new("RGB", (16, 16), "navy")
    ImageDraw.Draw(image).rectangle((8, 0, 15, 15), fill="gold")
    found = np.asarray(outline(image))
    assert set(np.unique(found)) == {0, 255}
    assert found[1:-1].any(0).nonzero()[0].tolist() == [8]  # the lighter side: FIND_EDGES clips at 0
    assert not found[[0, -1]].any()
    assert not np.asarray(outline(Image.new("RGB", (16, 16), "gold"))).any()


def test_likeness_is_one_for_equal_outlines(tmp_path):
    image = Image.new("RGB", (32, 32), "navy")
    ImageDraw.Draw(image).ellipse((2, 2, 11, 11), fill="gold")
    outline(image).save(tmp_path / "given.png")
    tasks = [Task("", "", None, (), tmp_path / "given.png")] * 3
    flat, turned = Image.new("RGB", (32, 32)), image.rotate(180)
    pixels = np.stack([np.asarray(each) for each in (image, flat, turned)]).transpose(0, 3, 1, 2)
    same, nothing, elsewhere = likeness(torch.from_numpy(pixels.copy()), tasks)
    assert same == pytest.approx(1.0)
    assert nothing == 0
    assert elsewhere < 0.1


def test_figures_are_paired_by_prompt():
    tasks = [Task(kind, "", None, (), Path()) for kind in ("a", "a", "a", "b")]
    without, under = np.array([0.0, 0.5, 1.0, 0.5]), np.array([1.0, 0.5, 0.75, 0.25])
    found = summarize(tasks, {"fidelity": without}, {"fidelity": under})
    assert found["a"]["fidelity"]["without"]["mean"] == pytest.approx(0.5)
    assert found["a"]["fidelity"]["with"]["mean"] == pytest.approx(0.75)
    assert found["a"]["fidelity"]["difference"]["mean"] == pytest.approx(0.25)
    low, high = found["a"]["fidelity"]["difference"]["interval"]
    assert low < 0.25 < high
    assert found["b"]["fidelity"]["difference"]["mean"] == pytest.approx(-0.25)


def test_prompts_without_an_attribute_do_not_count():
    tasks = [Task("a", "", None, (), Path())] * 3
    values = {"colour and time": np.array([np.nan, 1.0, 0.0])}
    found = summarize(tasks, values, values)["a"]["colour and time"]["with"]
    assert (found["mean"], found["num_prompts"]) == (0.5, 2)
