"""Files of prompts as A1111, kohya, PartiPrompts and others write them."""

import json

import pytest
from PIL import Image

import clipgraft
from clipgraft.errors import DataError, UserError
from clipgraft.generation.prompt_files import read_prompts, read_requests
from clipgraft.sampling_params import SamplingParams

PARAMS = SamplingParams(num_inference_steps=7)


def read(folder, name, text, **options):
    """Requests of a file, as prompt and the parameters that it changes."""
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    requests, _ = read_requests(path, PARAMS, **options)
    own = PARAMS.model_dump()
    return [
        (request.prompt, {name: value for name, value in request.params if value != own[name]})
        for request in requests
    ]


def test_text_is_one_prompt_per_line_and_comments_are_skipped(tmp_path):
    text = "# colours\r\na red dog\n\n  a black cat -- running \n"
    assert read(tmp_path, "p.txt", text) == [("a red dog", {}), ("a black cat -- running", {})]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
def test_separators_within_a_prompt_lose_nothing(tmp_path, separator, name):
    prompt = f"a red boat{separator}on the lake"
    texts = {"p.txt": prompt, "p.jsonl": json.dumps({"prompt": prompt}, ensure_ascii=False)}
    texts["p.csv"] = f'prompt\n"{prompt}"\n'
    assert read(tmp_path, name, texts[name]) == [(prompt, {})]


@pytest.mark.parametrize("name", ["p.jsonl", "p.ndjson", "p.JSONL", "p.txt", "prompts"])
def test_json_lines_are_read_by_name_or_first_brace(tmp_path, name):
    text = '{"prompt": "a dog", "seed": 3}\n{"prompt": "a cat", "num_inference_steps": 4}\n'
    found = read(tmp_path, name, text)
    assert found == [("a dog", {"seed": 3}), ("a cat", {"num_inference_steps": 4})]


def test_a_json_list_holds_texts_or_objects(tmp_path):
    text = json.dumps(["a dog", {"prompt": "a cat", "guidance_scale": 4.5}])
    assert read(tmp_path, "p.json", text) == [("a dog", {}), ("a cat", {"guidance_scale": 4.5})]


def test_options_of_a1111_are_parameters(tmp_path):
    text = (
        '--prompt "a dog, running" --negative_prompt "blurry" --steps 20 --cfg_scale 6.5\n'
        '--prompt "a cat" --width 64 --height 72 --seed 5 --sampler_name "DPM++ 2M Karras" --n_iter 2\n'
        '--prompt "a kite" --sampler_name Euler\n'
    )
    assert read(tmp_path, "p.txt", text) == [
        ("a dog, running", {"negative_prompt": "blurry", "num_inference_steps": 20, "guidance_scale": 6.5}),
        ("a cat", {"width": 64, "height": 72, "seed": 5}),
        ("a cat", {"width": 64, "height": 72, "seed": 6}),
        ("a kite", {"scheduler": "euler"}),
    ]


def test_options_of_kohya_are_parameters(tmp_path):
    text = "# samples\na dog on a beach --n low quality, blurry --w 512 --h 768 --d 1 --l 7.5 --s 28\n"
    expected = {"negative_prompt": "low quality, blurry", "width": 512, "height": 768, "seed": 1}
    expected |= {"guidance_scale": 7.5, "num_inference_steps": 28}
    assert read(tmp_path, "p.txt", text) == [("a dog on a beach", expected)]


def test_tables_have_a_column_of_prompts(tmp_path, capsys):
    parti = "Prompt\tCategory\tChallenge\tNote\na dog, running\tAnimals\tBasic\t\na cat\tAnimals\tStyle\tx\n"
    assert read(tmp_path, "PartiPrompts.tsv", parti) == [("a dog, running", {}), ("a cat", {})]
    assert "columns that are no parameters are left out: category, challenge, note" in capsys.readouterr().err
    table = 'prompt,seed,negative_prompt\n"a dog, red",4,\n"a\ncat",,blurry\n'
    assert read(tmp_path, "p.csv", table) == [
        ("a dog, red", {"seed": 4}),
        ("a\ncat", {"negative_prompt": "blurry"}),
    ]
    assert not capsys.readouterr().err
    table = "prompt,dynamic_prompts\na {dog},TRUE\na {cat},false\n"
    assert read(tmp_path, "p.csv", table) == [("a dog", {}), ("a {cat}", {})]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("prompt\na dog, on a beach\n1984\n", ["a dog, on a beach", "1984"]),
        ('prompt;seed\n"a dog; big";3\n', ["a dog; big"]),
        ('sep=,\nprompt,seed\n"a dog", 3,,\n', ["a dog"]),
        ('prompt,negative_prompt\na dog, "one, two"\n', ["a dog"]),
    ],
)
def test_tables_lose_nothing_of_a_prompt(tmp_path, text, prompts):
    assert [prompt for prompt, _ in read(tmp_path, "p.csv", text)] == prompts


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a café\n"),
        ("p.csv", "prompt\na café\n"),
        ("p.json", '["a café"]'),
        ("p.jsonl", '{"prompt": "a café"}'),
    ],
)
def test_a_byte_order_mark_tells_the_encoding(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_prompts(tmp_path / name) == ["a café"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt,seed\na dog, big,3\n", "line 2: 3 fields under 2 names, beginning 'a dog'"),
        ("p.csv", "prompt,seed,seed\na dog,3,4\n", "a column's name comes twice in prompt, seed, seed"),
        ("p.csv", 'prompt,seed\n"a dog,3\n', "line 2: not readable as CSV"),
        ("p.csv", f"prompt,seed\n{'x' * 200_000},3\n", "not readable as CSV (field larger"),
        (
            "p.txt",
            '--prompt "a dog" --sd_model x',
            "option --sd_model is not known; known are --steps",
        ),
        ("p.txt", '--prompt "a dog', "line 1: options cannot be read (No closing quotation)"),
        ("p.txt", "--prompt a dog", "line 1: 'dog' is no option; put the prompt in quotes"),
        ("p.txt", "--prompt", "line 1: --prompt has no value"),
        ("p.txt", "--seed 3", 'line 1: no object with a "prompt"'),
        ("p.txt", "a dog\na cat --q 3", "line 2: option --q is not known; known are --n"),
        (
            "p.txt",
            "a dog --steps 20",
            'line 1: --steps stands behind a prompt; A1111\'s form is --prompt "a dog"',
        ),
        ("p.txt", "a dog --s many", "line 1: setting 'num_inference_steps': input should be"),
        ("p.tsv", "text\tx\na dog\t1\n", "p.tsv has no column 'prompt'; its columns are 'text', 'x'"),
        ("p.csv", "prompt,steps\na dog,3\n", "line 2: 'steps' is called 'num_inference_steps' now"),
        ("p.csv", "prompt,seed\na dog,-3\n", "line 2: setting 'seed': input should be"),
        ("p.json", '{"prompt": "a dog"}', "p.json"),
        ("p.json", '[\n"a dog",\n3]', "p.json, entry 2: prompt must be a text; got 3"),
        ("p.txt", "\n\n", "p.txt holds no prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, text, message):
    with pytest.raises(DataError) as error:
        read(tmp_path, name, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Prompt\tCategory\na dog\tAnimals\n", "a table"),
        ("seed,prompt\n3,a dog\n", "a table"),
        ('["a dog", "a cat"]', "a JSON list"),
        ('[\n"a dog"\n]', "a JSON list"),
        ("a dog, prompt and quick\n[a cat]\n", ""),
        ("[red] dog\n", ""),
    ],
)
def test_another_form_read_as_lines_is_said(tmp_path, capsys, text, form):
    read(tmp_path, "p.txt", text)
    said = capsys.readouterr().err
    assert (f"p.txt looks like {form} and is read as one prompt per line" in said) if form else not said


@pytest.mark.parametrize("prompts", [3, None, ["A dog", 3]])
def test_prompts_of_another_type_are_shown(base, prompts):
    with pytest.raises(UserError, match="prompt must be a text; got "):
        clipgraft.load(base, device="cpu").generate(prompts, num_inference_steps=1)


def test_bad_lines_are_skipped_where_asked(tmp_path):
    text = "a dog\na cat --q 3\n"
    assert read(tmp_path, "p.txt", text, skip_bad_lines=True) == [("a dog", {})]


@pytest.mark.parametrize("seed", ["-1", '"random"'])
def test_a_random_seed_is_drawn_once_and_recorded(tmp_path, seed):
    text = "\n".join(json.dumps({"prompt": "a dog"})[:-1] + f', "seed": {seed}}}' for _ in range(8))
    seeds = [params["seed"] for _, params in read(tmp_path, "p.jsonl", text)]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_prompts_to_measure_on_are_read_from_the_same_files(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text("Prompt\tCategory\na dog\tAnimals\na dog\tAnimals\na cat\tAnimals\n")
    assert read_prompts(path) == ["a dog", "a cat"]


def test_files_are_named_from_home_too_and_none_by_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "colour.txt").write_text("red")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    named = {"prompt": "a __colour__ dog", "init_image": "~/a.png", "wildcards": "~", "lora_dir": "~"}
    none = {"prompt": "a cat", "init_image": "", "wildcards": "", "lora_dir": "", "embedding_dir": ""}
    text = f"{json.dumps(named)}\n{json.dumps(none)}"
    first, second = read(tmp_path / "prompts", "p.jsonl", text)
    assert first == ("a red dog", {"init_image": f"{tmp_path}/a.png", "lora_dir": str(tmp_path)})
    assert second == ("a cat", {})
