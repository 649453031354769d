"""Settings in image files that are damaged, endless or huge: one line, at once."""

import json
import time

import pytest
from foreign_files import (
    INVOKEAI,
    SD_METADATA,
    comfyui_graph,
    node,
    novelai_texts,
    read,
    read_graph,
    write_png,
)

from clipgraft.generation.from_image import read_foreign
from helpers import refused


def endless_graph():
    graph = comfyui_graph()
    graph["3"]["inputs"] |= {"positive": ["50", 0], "seed": ["51", 0], "latent_image": ["52", 0]}
    graph["50"] = node("ConditioningCombine", conditioning_1=["50", 0], conditioning_2=["50", 0])
    graph["51"] = node("PrimitiveInt", value=["51", 0])
    graph["52"] = node("LatentUpscale", samples=["52", 0])
    graph["3"]["inputs"]["model"] = ["53", 0]
    graph["53"] = node("LoraLoader", model=["53", 0])
    return graph


def test_a_graph_without_an_end_is_read_as_far_as_it_goes():
    prompt, params, unread = read_graph(endless_graph())
    assert prompt == ""
    assert "seed" not in params
    assert {"the positive prompt, which no known node holds", "seed, which no known node holds"} <= {*unread}


def test_a_chain_of_ten_thousand_nodes_is_followed():
    graph = comfyui_graph()
    graph["3"]["inputs"]["positive"] = ["c0", 0]
    graph |= {f"c{n}": node("ConditioningSetArea", conditioning=[f"c{n + 1}", 0]) for n in range(9_999)}
    graph["c9999"] = node("CLIPTextEncode", text="the end")
    assert read_graph(graph)[0] == "the end"


HOSTILE = {
    "deep JSON": ({"prompt": "[" * 100_000}, "nested deeper than 64"),
    "no JSON": ({"prompt": "{"}, "ComfyUI's prompt graph is not JSON"),
    "a list": ({"prompt": "[]"}, "an object is expected"),
    "no sampler": ({"prompt": "{}"}, "has no sampler with steps and a prompt"),
    "nodes of other types": ({"prompt": json.dumps({"1": 5, "2": {"inputs": []}})}, "has no sampler"),
    "a workflow alone": ({"workflow": "{}"}, "ComfyUI's workflow alone"),
    "a lone surrogate": ({"invokeai_metadata": '{"positive_prompt": "\\ud83d"}'}, "half a surrogate pair"),
    "metadata without image": ({"sd-metadata": "{}"}, "sd-metadata holds no image"),
    "a dream without quotes": ({"Dream": "a dog -s 50"}, "holds no prompt in quotes"),
    "no settings": ({"Title": "a dog", "parameters": "a dog"}, "holds no record of its generation"),
    "a damaged comment": ({"Software": "NovelAI", "Comment": "x"}, "NovelAI's comment is not JSON"),
    "a long prompt": (
        {"parameters": "dog " * 25_000 + "\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"},
        "prompt has 99,999 characters; at most 32,000 are read",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_file_is_one_line(tmp_path, capsys, name):
    texts, message = HOSTILE[name]
    path = write_png(tmp_path / "x.png", texts, is_packed=name == "deep JSON")
    found = refused(capsys, "generate", "--from-image", path, "--out", tmp_path / "out", "--dry-run")
    assert message in found
    assert not (tmp_path / "out").exists()


def test_a_text_of_80_mb_in_80_kb_is_left_unread(tmp_path, capsys):
    path = write_png(tmp_path / "x.png", {"prompt": " " * 80_000_000}, is_packed=True)
    begun = time.process_time()
    found = refused(capsys, "generate", "--from-image", path, "--out", tmp_path, "--dry-run")
    assert "holds no record of its generation" in found
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("text", ["a:" * 200_000, 'a: "' * 100_000, "a " * 300_000, 'a:"\\' * 150_000])
def test_a_text_without_an_end_takes_no_time(text):
    begun = time.process_time()
    assert read_foreign({"parameters": f"a\n{text}"[:500_000]}) is None
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("value", [None, True, [], {}, "x", "nan", 1e400, -1, [1, 2, 3], ["3", 0]])
def test_values_of_other_types_are_left_out(value):
    for key in ("seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "model", "latent_image"):
        graph = comfyui_graph()
        graph["3"]["inputs"][key] = value
        assert read_graph(graph)[1]["negative_prompt"] == "text, watermark"
    for key in INVOKEAI:
        assert read({"invokeai_metadata": json.dumps(INVOKEAI | {key: value})})
    for key in SD_METADATA["image"]:
        image = SD_METADATA["image"] | {key: value}
        assert read({"sd-metadata": json.dumps(SD_METADATA | {"image": image})})
    for key in ("steps", "seed", "scale", "sampler", "uc", "prompt", "noise_schedule", "request_type"):
        assert read(novelai_texts(**{key: value}))
