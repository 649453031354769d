"""Settings in image files of A1111, ComfyUI, InvokeAI and NovelAI: read, or named."""

import json

import pytest
from foreign_files import (
    DREAM,
    INFOTEXT,
    INVOKEAI,
    SD_METADATA,
    comfyui_graph,
    node,
    novelai_texts,
    read,
    read_graph,
    write_png,
)
from image_world import generate, rows_of
from PIL import Image

from clipgraft.generation.foreign.foreign_settings import A1111_SAMPLERS, ForeignSettings, scheduler_of
from clipgraft.generation.from_image import read_foreign
from clipgraft.generation.metadata import parameters_text
from clipgraft.sampling_params import Lora, SamplingParams
from helpers import call, image_request, refused
from lora_world import write_kohya

EXIF_USER_COMMENT, EXIF_POINTER = 0x9286, 0x8769


def test_an_infotext_gives_prompt_and_parameters():
    prompt, params, unread = read({"parameters": INFOTEXT})
    assert prompt == "girl with an artist's beret, ((eyeshadow)), (coquettish:1.2), desert scene\nby night"
    assert params == {
        "negative_prompt": "ugly, [blurry],\nbad anatomy",
        "num_inference_steps": 20,
        "scheduler": "euler",
        "guidance_scale": 7,
        "seed": 965400086,
        "width": 512,
        "height": 768,
        "prompt_syntax": "weighted",
    }
    assert unread == ["model dreamy"]


def test_what_an_infotext_holds_beyond_is_named():
    text = (
        "a boat <lora:add_detail:0.8>\nSteps: 20, Sampler: DPM fast, CFG scale: 7, Seed: 1, Size: 500x512, "
        'Clip skip: 2, ENSD: 31337, Denoising strength: 0.5, Hires upscale: 2, ControlNet 0: "Module: canny, '
        'Weight: 1", Version: v1.9.0'
    )
    prompt, params, unread = read({"parameters": text})
    assert prompt == "a boat"
    assert params["clip_skip"] == 1
    assert "strength" not in params
    assert unread == [
        "sampler DPM fast",
        "hires fix: the image is generated at its first size",
        "ENSD: 31337",
        "ControlNet 0: Module: canny, Weight: 1",
        "LoRA add_detail at 0.8; name their folder with --lora-dir",
        "setting 'width': input should be a multiple of 8; got 500",
    ]


@pytest.mark.parametrize(
    "pair", ["Size: 64", "Size: 512x99999999", "CFG scale: high", "CFG scale: nan", "Seed: 5e999"]
)
def test_values_of_an_infotext_that_cannot_be_read_are_named(pair):
    infotext = f"a dog\nSteps: 20, Sampler: Euler, Model: dreamy, {pair}"
    prompt, changed, unread = read({"parameters": infotext})
    assert prompt == "a dog"
    assert changed.keys() == {"num_inference_steps", "scheduler", "prompt_syntax"}
    assert pair in unread


def test_both_ways_to_write_a_schedule_are_read():
    for names in ("Sampler: DPM++ 2M Karras", "Sampler: DPM++ 2M, Schedule type: Karras"):
        _, params, unread = read({"parameters": f"a boat\nSteps: 20, {names}, CFG scale: 7, Seed: 1"})
        assert "scheduler" not in params  # the default
        assert unread == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpm++"),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", "dpm++-2m"),
        ("Sampler: Euler a, Schedule type: Automatic", "euler-a"),
        ("Sampler: DPM++ SDE Karras", "dpm++-sde-karras"),
        ("Sampler: LMS", "lms"),
    ],
)
def test_samplers_of_a1111_are_found_in_the_table(names, expected):
    settings = read_foreign({"parameters": f"a boat\nSteps: 20, {names}, CFG scale: 7, Seed: 1"})
    assert settings.values["scheduler"] == expected
    assert settings.unread == []


def test_samplers_of_the_others_are_found_in_the_table():
    for name, sampler in A1111_SAMPLERS.items():
        assert scheduler_of(sampler), name
    for sampler, schedule, expected in (
        *(("dpmpp_2m", "karras", "dpm++"), ("euler_ancestral", "normal", "euler-a")),
        *(("dpmpp_sde_gpu", "karras", "dpm++-sde-karras"), ("dpmpp_2m_sde_k", "", "dpm++-2m-sde-karras")),
        *(("k_dpmpp_2s_ancestral", "native", "dpm++-2s-a"), ("k_lms", "", "lms"), ("ddim_v3", "", "ddim")),
    ):
        settings = ForeignSettings("any")
        settings.add_k_sampler(sampler, schedule)
        assert (settings.values, settings.unread) == ({"scheduler": expected}, [])
    settings = ForeignSettings("any")
    settings.add_k_sampler("dpm_adaptive", "karras")
    assert (settings.values, settings.unread) == ({}, ["sampler dpm_adaptive Karras"])


def test_prompt_editing_falls_back_to_plain_text():
    text = "a [red:blue:0.5] boat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"
    prompt, params, unread = read({"parameters": text})
    assert prompt == "a [red:blue:0.5] boat"
    assert "prompt_syntax" not in params
    assert "weights of the prompt, which is read as plain text" in unread[0]


def test_our_own_parameters_alone_give_the_request_again():
    request = image_request(
        "a (red:1.3) boat", 7, negative_prompt="fog", num_inference_steps=9, guidance_scale=4.5
    )
    params = request.params.updated({"height": 64, "width": 72, "prompt_syntax": "weighted"})
    job = {**request.as_record(), "height": 64, "width": 72}
    models = {"unet_sha256": "0" * 64, "base": "flatland"}
    text = parameters_text({"job": job, "models": models, "versions": {"clipgraft": "1"}})
    settings = read_foreign({"parameters": text})
    assert settings.request(SamplingParams()).params == params


def test_the_default_graph_of_comfyui_is_read():
    prompt, params, unread = read_graph(comfyui_graph())
    assert prompt == "beautiful scenery, galaxy bottle"
    assert params == {
        "negative_prompt": "text, watermark",
        "seed": 156680208700286,
        "num_inference_steps": 20,
        "guidance_scale": 8,
        "scheduler": "euler",
        "width": 512,
        "height": 640,
    }
    assert unread == ["model v1-5-pruned-emaonly.safetensors"]


def test_links_to_texts_seeds_and_loras_are_followed():
    graph = comfyui_graph()
    graph["3"]["inputs"] |= {
        "seed": ["20", 0],
        "model": ["10", 0],
        "positive": ["12", 0],
        "scheduler": "beta",
    }
    graph["10"] = node("LoraLoader", lora_name="detail.safetensors", strength_model=0.6, model=["11", 0])
    graph["11"] = node("FreeU", b1=1.1, model=["4", 0])
    graph["12"] = node("ControlNetApply", conditioning=["6", 0], strength=1.0)
    graph["6"]["inputs"] |= {"text": ["21", 0], "clip": ["13", 0]}
    graph["13"] = node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1])
    graph["20"] = node("PrimitiveInt", value=5)
    graph["21"] = node("PrimitiveString", value="a (red:1.2) [boat]")
    prompt, params, unread = read_graph(graph)
    assert prompt == r"a (red:1.2) \[boat\]"  # square brackets have no weight in ComfyUI
    assert (params["seed"], params["clip_skip"], params["scheduler"]) == (5, 1, "euler")
    assert params["prompt_syntax"] == "weighted"
    assert unread == [
        "schedule type beta",
        "model v1-5-pruned-emaonly.safetensors",
        "node ControlNetApply",
        "node PrimitiveString",
        "node PrimitiveInt",
        "node FreeU",
        "LoRA detail.safetensors at 0.6; name their folder with --lora-dir",
    ]


def test_of_two_samplers_the_first_is_read():
    graph = comfyui_graph()
    graph["30"] = node("LatentUpscale", samples=["3", 0], width=1024, height=1280)
    graph["2"] = node("KSampler", **(graph["3"]["inputs"] | {"latent_image": ["30", 0], "steps": 9}))
    _, params, unread = read_graph(graph)
    assert (params["num_inference_steps"], params["width"]) == (20, 512)
    assert "1 more samplers (hires fix or another image)" in unread


def test_the_parts_of_a_custom_sampler_are_read():
    graph = comfyui_graph()
    graph["3"] = node(
        "SamplerCustomAdvanced",
        noise=["31", 0],
        guider=["32", 0],
        sampler=["33", 0],
        sigmas=["34", 0],
        latent_image=["5", 0],
    )
    graph["31"] = node("RandomNoise", noise_seed=77)
    graph["32"] = node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=4.5)
    graph["33"] = node("KSamplerSelect", sampler_name="dpmpp_2m")
    graph["34"] = node("BasicScheduler", scheduler="karras", steps=12, denoise=1, model=["4", 0])
    prompt, params, _ = read_graph(graph)
    assert prompt == "beautiful scenery, galaxy bottle"
    assert (params["seed"], params["num_inference_steps"], params["guidance_scale"]) == (77, 12, 4.5)
    assert "scheduler" not in params  # DPM++ 2M Karras is the default


def test_image_to_image_needs_the_image_named(tmp_path):
    graph = comfyui_graph()
    graph["3"]["inputs"] |= {"denoise": 0.6, "latent_image": ["40", 0]}
    graph["40"] = node("VAEEncode", pixels=["41", 0], vae=["4", 2])
    graph["41"] = node("LoadImage", image="start.png")
    _, params, unread = read_graph(graph)
    assert "strength" not in params
    assert "the image that it was started from (strength 0.6); name it with --init-image" in unread
    start = write_png(tmp_path / "start.png", {})
    _, params, unread = read_graph(graph, init_image=start)
    assert (params["strength"], params["init_image"]) == (0.6, str(start))
    assert len(unread) == 1  # the model


def test_the_versions_of_invokeai_are_read():
    prompt, params, unread = read({"invokeai_metadata": json.dumps(INVOKEAI), "invokeai_workflow": "{}"})
    size = {"width": 512, "height": 640}
    assert prompt == "a red boat"
    assert params == size | {
        **{"negative_prompt": "fog", "seed": 42, "num_inference_steps": 30, "guidance_scale": 7.5}
    }
    assert unread == [
        "model dreamshaper-8",
        "LoRA add-detail at 0.75; name their folder with --lora-dir",
    ]
    prompt, params, unread = read({"sd-metadata": json.dumps(SD_METADATA), "Dream": DREAM})
    assert prompt == "a red boat"
    assert params["negative_prompt"] == "fog, rain"
    assert (params["scheduler"], params["seed"], params["width"]) == ("euler", 1826793488, 640)
    assert unread == ["model stable-diffusion-1.5"]
    prompt, params, unread = read({"Dream": DREAM})
    assert (prompt, params["negative_prompt"], params["scheduler"]) == ("a red boat", "fog", "ddim")
    assert unread == ["option -f 0.3"]


def test_loras_are_found_in_the_folder_that_is_named(tmp_path):
    file = write_kohya(tmp_path / "detail.safetensors")
    text = "a boat <lora:detail:0.8>\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"
    graph = comfyui_graph()
    graph["3"]["inputs"]["model"] = ["10", 0]
    graph["10"] = node("LoraLoader", lora_name="sd1\\detail.safetensors", strength_model=0.6, model=["4", 0])
    for texts, strength in (({"parameters": text}, 0.8), ({"prompt": json.dumps(graph)}, 0.6)):
        _, params, unread = read(texts, lora_dir=str(tmp_path))
        assert params["loras"] == (Lora(file=str(file), strength=strength),)
        assert not any("detail" in line for line in unread)
    _, params, unread = read({"parameters": text.replace("detail", "other")}, lora_dir=str(tmp_path))
    assert "loras" not in params
    assert any(line.startswith("no LoRA 'other' (.safetensors) in ") for line in unread)


def test_weights_of_invokeai_are_named():
    _, _, unread = read({"invokeai_metadata": json.dumps(INVOKEAI | {"positive_prompt": "a red++ boat"})})
    assert "weights of the prompt, such as word++ and (words)1.3, which are read as text" in unread
    _, _, unread = read({"invokeai_metadata": json.dumps(INVOKEAI | {"positive_prompt": "sci-fi, c++17"})})
    assert not any("weights" in line for line in unread)


def test_brackets_of_novelai_become_weights():
    prompt, params, unread = read(novelai_texts())
    assert prompt == r"((boat:1.05):1.05), (fog:0.9524), lake \(wide\)"
    assert params == {
        "prompt_syntax": "weighted",
        **{"negative_prompt": "lowres", "seed": 9, "num_inference_steps": 28, "guidance_scale": 5.0},
        **{"scheduler": "euler", "width": 512, "height": 640},
    }
    assert unread == ["model NovelAI Diffusion V3 C1E1DE52", "SMEA: True"]
    prompt, params, unread = read(novelai_texts(prompt="{boat"))
    assert (prompt, "prompt_syntax" in params) == ("{boat", False)
    assert "weights of the prompt, whose brackets have no partner" in unread


@pytest.mark.integration
def test_the_settings_are_printed_and_the_image_generated(base, tmp_path, capsys):
    graph = comfyui_graph()
    graph["3"]["inputs"]["steps"] = 2
    graph["5"]["inputs"] |= {"width": 64, "height": 72}
    path = write_png(tmp_path / "x.png", {"prompt": json.dumps(graph)})
    command = ["generate", "--from-image", path, "--out", tmp_path / "out"]
    assert call(*command, "--dry-run") == 0
    printed, notes = capsys.readouterr()
    assert printed.splitlines()[:2] == [
        "settings of x.png, by ComfyUI:",
        "  prompt: beautiful scenery, galaxy bottle",
    ]
    assert "  seed: 156680208700286" in printed
    assert "note: not read: model v1-5-pruned-emaonly.safetensors" in notes
    assert not (tmp_path / "out").exists()
    assert "no graft and no base" in refused(capsys, *command)
    assert call(*command, "--base", base) == 0
    assert "it will not equal x.png" in capsys.readouterr().err
    [row] = rows_of(tmp_path / "out")
    assert (row["prompt"], row["width"]) == ("beautiful scenery, galaxy bottle", 64)


def test_a_dry_run_prints_an_images_own_settings(base, tmp_path, capsys):
    generate(base, tmp_path / "a", "A dog", "--format", "webp")
    path = tmp_path / "a" / "a-dog_seed0.webp"
    assert call("generate", "--from-image", path, "--base", base, "--out", tmp_path / "b", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "settings of a-dog_seed0.webp, by clipgraft:\n  prompt: A dog\n  seed: 0\n" in printed


def test_settings_in_the_exif_of_jpeg_and_webp_are_read(tmp_path, capsys):
    exif = Image.Exif()
    exif.get_ifd(EXIF_POINTER)[EXIF_USER_COMMENT] = b"UNICODE\0" + INFOTEXT.encode("utf-16-be")
    Image.new("RGB", (64, 64)).save(tmp_path / "x.jpg", exif=exif)
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(comfyui_graph())}", "workflow:{}"
    Image.new("RGB", (64, 64)).save(tmp_path / "x.webp", exif=exif)
    for name, tool in (("x.jpg", "A1111 or Forge"), ("x.webp", "ComfyUI")):
        assert call("generate", "--from-image", tmp_path / name, "--out", tmp_path, "--dry-run") == 0
        assert f"settings of {name}, by {tool}:" in capsys.readouterr().out
