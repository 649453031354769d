"""The scripts in examples/, run on tiny models and data."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

import clipgraft as cg
import tiny
from clipgraft.models.base import FrozenBase

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = {"allow_few_captions": True, "num_epochs": 1, "hidden_size": 16, "batch_size": 16}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    tiny.write_clip(folder / "clip")
    tiny.write_clip(folder / "tuned", seed=5)
    tiny.write_base(folder / "base")
    tiny.write_flickr8k(folder / "data", num_images=48)
    lines = [f"{caption} {number}" for number in range(30) for caption in tiny.CAPTIONS]
    (folder / "captions.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def graft(world):
    models = {"clip": str(world / "clip"), "base": str(world / "base")}
    example("graft_and_generate").main(str(world / "captions.txt"), str(world / "out"), **models, **FEW)
    return world / "out" / "graft"


@pytest.mark.integration
def test_finetune_your_folder(world, tmp_path, capsys):
    options = {"clip": str(world / "clip"), "num_epochs": 2, "batch_size": 8}
    example("finetune_your_folder").main(str(world / "data"), output_dir=str(tmp_path / "out"), **options)
    assert "mean loss of each epoch" in capsys.readouterr().out
    assert (tmp_path / "out" / "clip" / "model.safetensors").is_file()


def test_graft_and_generate(graft):
    images = list(graft.parent.glob("*.png"))
    assert [Image.open(path).size for path in images] == [(64, 64), (64, 64)]


@pytest.mark.integration
def test_compare_before_and_after(world, capsys):
    models = {"clip": str(world / "clip"), "base": str(world / "base")}
    example("compare_before_and_after").main(
        str(world / "data"), str(world / "tuned"), **models, num_prompts=4
    )
    assert "95 % interval" in capsys.readouterr().out


def test_controlnet(world, graft, tmp_path):
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "sketch.png")
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(
        FrozenBase.load(str(world / "base")).unet, conditioning_embedding_out_channels=(4, 4, 8, 8)
    )
    images = example("controlnet").main(
        str(graft), str(tmp_path / "sketch.png"), controlnet=controlnet, num_inference_steps=3
    )
    assert [image.size for image in images] == [(64, 64), (64, 64)]


@pytest.mark.integration
def test_your_own_loss(world, capsys):
    options = {"clip": str(world / "clip"), "num_epochs": 6, "batch_size": 8, "learning_rate": 1e-3}
    example("your_own_loss").main(str(world / "data"), **options)
    losses = json.loads(capsys.readouterr().out.split("each epoch: ")[1])
    assert losses[-1] < losses[0] < 0.5


@pytest.mark.integration
def test_a_run_is_not_resumed_with_another_loss(world, tmp_path):
    clip, data = cg.load_clip(str(world / "clip")), cg.load_dataset(world / "data")
    options = {"num_epochs": 1, "batch_size": 8, "output_dir": tmp_path / "out"}
    cg.finetune(clip, data, objective=example("your_own_loss").HardestNegative, **options)
    with pytest.raises(cg.CheckpointError, match="objective"):
        cg.finetune(clip, data, resume=True, **options | {"num_epochs": 2})


def test_five_scripts_are_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        name.removeprefix("test_") for name in globals() if name.startswith("test_")
    } - {"five_scripts_are_tested", "a_run_is_not_resumed_with_another_loss"}
