"""Dynamic prompts: alternatives and wildcard files, drawn by the image's seed."""

import time
from collections import Counter

import pytest
from image_world import generate, rows_of

from clipgraft.errors import UserError
from clipgraft.generation.dynamic_prompts import DynamicPrompts
from clipgraft.generation.generate import GenerateOptions
from clipgraft.generation.grid import generate_grid, parse_axis
from clipgraft.generation.prompt_files import read_requests
from clipgraft.generation.requests import image_requests
from clipgraft.sampling_params import InferenceConfig, SamplingParams
from helpers import call, refused

SEEDS = 400


@pytest.fixture
def wildcards(tmp_path):
    folder = tmp_path / "wildcards"
    (folder / "deep").mkdir(parents=True)
    (folder / "colour.txt").write_text("# of boats\nred\n\nblue\r\n", newline="")
    (folder / "deep" / "water.txt").write_text("{sea|__deep/lake__}\n")
    (folder / "deep" / "lake.txt").write_text("a lake at night, 狗")
    (folder / "loop.txt").write_text("x __loop__")
    (folder / "twice.txt").write_text("__twice__ and __twice__")
    (folder / "empty.txt").write_text("# nothing\n\n")
    return folder


def drawn(template, wildcards="", seeds=SEEDS):
    """How often each prompt comes of a template."""
    templates = DynamicPrompts(str(wildcards))
    return Counter(templates.resolve(template, str(seed)) for seed in range(seeds))


def test_each_alternative_is_drawn_as_often_as_it_weighs():
    assert drawn("a {red|blue} dog").keys() == {"a red dog", "a blue dog"}
    assert 140 < drawn("{red|blue}")["red"] < 260  # 200 +- 6 deviations
    assert 245 < drawn("{3::red|blue}")["red"] < 352  # 300 +- 6 deviations
    assert drawn("{0::red|blue}").keys() == {"blue"}
    assert 60 < drawn("{a|{b|c}}")["b"] < 152  # 100 +- 6 deviations


def test_several_alternatives_are_drawn_without_repeating_one():
    assert drawn("{2$$a|b|c}").keys() == {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}
    assert drawn("{1-2$$ and $$a|b}").keys() == {"a", "b", "a and b", "b and a"}
    assert drawn("{-2$$a|b}").keys() == drawn("{1-$$a|b}").keys() == {"a", "b", "a, b", "b, a"}
    assert drawn("{9$$$$a|b}").keys() == {"ab", "ba"}


@pytest.mark.parametrize(
    "text",
    ["a {red dog", "a red} dog", "a }b{", "100% $5 # a :: b", "a | b", "(a:1.2) [b]", "__x__", "a __ b", ""],
)
def test_all_else_is_text(text):
    assert drawn(text, seeds=3).keys() == {text}


def test_spaces_stay_and_escaped_braces_are_text():
    assert drawn("a {very |}big dog").keys() == {"a very big dog", "a big dog"}
    assert drawn(r"\{a|b\} {c}", seeds=3).keys() == {"{a|b} c"}
    assert drawn("a { b\n{x|y}", seeds=30).keys() == {"a { b\nx", "a { b\ny"}


def test_a_wildcard_is_a_line_of_its_file(wildcards):
    assert drawn("a __colour__ boat", wildcards).keys() == {"a red boat", "a blue boat"}
    assert drawn("{__colour__|big}", wildcards).keys() == {"red", "blue", "big"}
    (wildcards / "SHAPE.TXT").write_text("ball\n")
    assert drawn("a __Shape__", wildcards, seeds=1).keys() == {"a ball"}
    for name in ("deep/water", "water"):
        assert drawn(f"__{name}__", wildcards).keys() == {"sea", "a lake at night, 狗"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("__color__", "wildcard __color__ has no file color.txt in "),
        ("__color__", "; there are colour"),
        ("__../secret__ __deep/../../secret__", "has no file deep/../../secret.txt"),
        ("__empty__", "empty.txt has no line to draw; write one or take it out"),
        ("__loop__", "nests deeper than 100, or a wildcard leads back to itself"),
        ("__twice__", "prompt '__twice__' grows beyond 32,000 characters"),
        ("{" * 200 + "a|b" + "}" * 200, "nests deeper than 100"),
        ("${v={a|b}} ${v}", "begins a variable, which is not known here"),
    ],
)
def test_what_cannot_be_resolved_is_one_line(wildcards, template, message):
    (wildcards.parent / "secret.txt").write_text("secret")
    begun = time.process_time()
    with pytest.raises(UserError) as error:
        drawn(template, wildcards, seeds=1)
    assert message in str(error.value)
    assert time.process_time() - begun < 1


def test_a_long_template_takes_no_time():
    begun = time.process_time()
    for text in ("{a|b}" * 20_000, "{" * 100_000, "__a" * 30_000, "{a|" * 30_000):
        drawn(text, seeds=1)
    assert time.process_time() - begun < 3


def test_a_wildcard_folder_or_file_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a folder; name one with .txt files"):
        DynamicPrompts(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no file x.txt in .*, nor any other .txt file"):
        drawn("__x__", tmp_path, seeds=1)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"x.txt is not UTF-8 text"):
        drawn("__x__", tmp_path, seeds=1)


def test_braces_are_text_unless_asked():
    params = SamplingParams(num_images_per_prompt=8)
    assert {request.prompt for request in image_requests(["a {red|blue} dog"], params)} == {
        "a {red|blue} dog"
    }


def test_each_seed_draws_its_own_and_the_same_again(wildcards):
    params = SamplingParams(
        negative_prompt="{fog|rain}", num_images_per_prompt=20, wildcards=str(wildcards), clip_skip=1
    )
    requests = image_requests(["a __colour__ {dog|cat}"], params)
    assert len({request.prompt for request in requests}) == 4
    assert {request.params.negative_prompt for request in requests} == {"fog", "rain"}
    assert requests == image_requests(["a __colour__ {dog|cat}"], params)
    alone = SamplingParams.of(params, seed=7, num_images_per_prompt=1)
    assert image_requests(["x", "a __colour__ {dog|cat}"], alone)[1] == requests[7]
    assert all(request.params.clip_skip == 1 for request in requests)


@pytest.mark.integration
def test_the_resolved_prompt_is_recorded_and_redrawn(base, wildcards, tmp_path, capsys):
    options = ["--num-images", 3, "--wildcards", wildcards, "--batch-size", 1]
    assert generate(base, tmp_path / "a", "a __colour__ {dog|cat}", *options) == 0
    rows = rows_of(tmp_path / "a")
    for row in rows:
        assert row["prompt"].removeprefix("a ").split()[0] in ("red", "blue")
        generate(base, tmp_path / "b", row["prompt"], "--seed", row["seed"])
        assert (tmp_path / "b" / row["file"]).read_bytes() == (tmp_path / "a" / row["file"]).read_bytes()
    again = ["--from-image", tmp_path / "a" / rows[0]["file"], "--base", base, "--out", tmp_path / "c"]
    assert call("generate", *again) == 0
    assert (tmp_path / "c" / rows[0]["file"]).read_bytes() == (tmp_path / "a" / rows[0]["file"]).read_bytes()
    capsys.readouterr()
    generate(base, tmp_path / "a", "a __colour__ {dog|cat}", *options)
    assert "3 already there" in capsys.readouterr().out


def test_a_grid_draws_too_and_errors_come_first(base, wildcards, tmp_path, capsys):
    params = SamplingParams(dynamic_prompts=True, num_inference_steps=1)
    options = GenerateOptions(str(base), inference=InferenceConfig(engine="torch"))
    generate_grid([parse_axis("seed=0-3")], params, tmp_path / "g", options, prompt="a {red|blue} dog")
    assert {row["prompt"] for row in rows_of(tmp_path / "g")} == {"a red dog", "a blue dog"}
    message = refused(capsys, "generate", "a __color__", "--out", tmp_path / "o", "--wildcards", wildcards)
    assert "wildcard __color__ has no file color.txt" in message
    assert not (tmp_path / "o").exists()


def test_files_of_prompts_are_templates_too(wildcards, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a {red|blue} dog", "seed": 3, "dynamic_prompts": true}\n{"prompt": "a {red|blue} cat"}\n'
        '{"prompt": "__colour__", "wildcards": "wildcards"}\n'
    )
    (dog, cat, colour), _ = read_requests(path, SamplingParams())
    assert dog.prompt == DynamicPrompts("").resolve("a {red|blue} dog", "3")
    assert cat.prompt == "a {red|blue} cat"
    assert colour.prompt in ("red", "blue")
