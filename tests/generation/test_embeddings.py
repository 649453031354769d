"""Textual inversion embeddings: the states of diffusers, in positions of their own."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from image_world import generate, pixels, rows_of
from safetensors.torch import save_file

import clipgraft
import tiny
from clipgraft.errors import CheckpointError, UserError
from clipgraft.generation.embedding_files import Embeddings, read_embedding
from clipgraft.generation.prompt_embeds import PromptEmbedCache, request_notes, split_prompt
from clipgraft.sampling_params import EncodeParams, InferenceConfig, SamplingParams
from helpers import call, image_request, refused

WIDTH = tiny.TEACHER_WIDTH


def write(file, *, key="emb_params", vectors=2, width=WIDTH, seed=4):
    torch.manual_seed(seed)
    save_file({key: torch.randn(vectors, width)}, file)
    return file


@pytest.fixture(scope="module")
def fur(tmp_path_factory):
    """Of A1111, two vectors."""
    return write(tmp_path_factory.mktemp("embeddings") / "EasyFur.safetensors")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Of diffusers, one vector."""
    file = tmp_path_factory.mktemp("embeddings") / "learned_embeds.safetensors"
    save_file({"<cat-toy>": torch.randn(WIDTH)}, file)
    return file


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build_pipeline()


def params_of(*files, **values):
    return EncodeParams.build({"embeddings": files, **values})


def ids_of(prompt, pipeline, params):
    [chunk] = split_prompt(prompt, pipeline.tokenizer, params)
    return chunk.tokens


@pytest.mark.parametrize("prompt", ["A <cat-toy> runs , EasyFur", "easyfur", "a cat-toy <cat-toy><cat-toy>."])
def test_states_are_those_of_diffusers(prompt, base, pipeline, fur, toy):
    stock = StableDiffusionPipeline.from_pretrained(base)
    stock.load_textual_inversion(str(toy.parent), weight_name=toy.name)
    stock.load_textual_inversion(str(fur.parent), weight_name=fur.name, token="easyfur")
    spelled = prompt.replace(
        "EasyFur", "easyfur"
    )  # in capitals diffusers leaves out all vectors but the first
    with torch.no_grad():
        expected, _ = stock.encode_prompt(spelled, "cpu", 1, do_classifier_free_guidance=False)
    found = PromptEmbedCache(pipeline)(prompt, params_of(fur, toy))
    assert torch.equal(found, expected)
    assert not torch.equal(found, PromptEmbedCache(pipeline)(prompt, EncodeParams()))


def test_nothing_is_left_of_an_embedding(pipeline, fur):
    cache, prompts = PromptEmbedCache(pipeline), ("An EasyFur dog", "A dog")
    size = len(pipeline.tokenizer), pipeline.text_encoder.get_input_embeddings().weight.shape
    before = [cache(prompt, EncodeParams()).clone() for prompt in prompts]
    assert not torch.equal(cache(prompts[0], params_of(fur)), before[0])
    cache.clear()
    for prompt, states in zip(prompts, before, strict=True):
        assert torch.equal(cache(prompt, EncodeParams()), states)
    assert size == (len(pipeline.tokenizer), pipeline.text_encoder.get_input_embeddings().weight.shape)


def test_each_vector_counts_as_a_token_with_its_weight(pipeline, fur):
    params = params_of(fur, prompt_syntax="weighted")
    [chunk] = split_prompt("a (EasyFur:1.5) dog", pipeline.tokenizer, params)
    first, *rest = ids_of("a dog", pipeline, params)
    assert chunk.tokens == [first, -1, -2, *rest]
    assert chunk.weights == [1.0, 1.5, 1.5, *[1.0] * len(rest)]


def test_an_embedding_is_not_split_between_chunks(pipeline, tmp_path):
    file = write(tmp_path / "long.safetensors", vectors=40)
    found = split_prompt("long long", pipeline.tokenizer, params_of(file))
    assert [len(chunk.tokens) for chunk in found] == [40, 40]
    cut = split_prompt("long long", pipeline.tokenizer, params_of(file, long_prompts="cut"))
    assert [len(chunk.tokens) for chunk in cut] == [75]


def test_words_are_whole_and_the_longest_wins(pipeline, tmp_path):
    bad, worse = (write(tmp_path / f"{name}.safetensors", vectors=1) for name in ("bad", "bad-hands-5"))
    params = params_of(bad, worse)
    ids = ids_of("badger bad-hands-5, BAD", pipeline, params)
    assert [token for token in ids if token < 0] == [-2, -1]
    assert ids_of("badger", pipeline, params) == ids_of("badger", pipeline, EncodeParams())


def test_embedding_in_neither_prompt_is_noted(base, fur, toy):
    generator = clipgraft.load(base, inference=InferenceConfig(engine="torch"))
    params = SamplingParams.build(
        {"embeddings": [str(fur), str(toy)], "negative_prompt": "EasyFur", "num_inference_steps": 1}
    )
    [image] = generator.generate("A dog", params)
    assert [note for note in image.notes if "embedding" in note] == [
        "embedding '<cat-toy>' is in neither prompt"
    ]
    assert request_notes("A dog EasyFur", generator.pipeline.tokenizer, params) == []


@pytest.mark.integration
def test_image_is_redrawn_with_its_own_embeddings(base, fur, toy, tmp_path, capsys):
    options = ("--embedding", fur, "--embedding", toy)
    assert generate(base, tmp_path / "a", "EasyFur on a <cat-toy>", "A dog", *options) == 0
    assert generate(base, tmp_path / "b", "EasyFur on a <cat-toy>") == 0
    row, _ = rows_of(tmp_path / "a")
    assert [each["name"] for each in row["embeddings"]] == ["EasyFur", "<cat-toy>"]
    picture = tmp_path / "a" / row["file"]
    assert not np.array_equal(pixels(picture), pixels(tmp_path / "b" / row["file"]))
    again = ("generate", "--base", base, "--from-image", picture, "--out", tmp_path / "c")
    assert call(*again, "--embedding", toy, "--embedding", fur) == 0
    assert (tmp_path / "c" / row["file"]).read_bytes() == picture.read_bytes()
    capsys.readouterr()
    assert "made with an embedding 'EasyFur' (sha256" in refused(capsys, *again, "--embedding", toy)
    renamed = tmp_path / "other.safetensors"
    renamed.write_bytes(fur.read_bytes())
    assert "has to be called EasyFur.safetensors" in refused(
        capsys, *again, "--embedding", toy, "--embedding", renamed
    )
    plain = (*again[:4], tmp_path / "b" / row["file"], *again[5:])
    assert "without an embedding; leave --embedding out" in refused(capsys, *plain, "--embedding", toy)


def test_embedding_of_another_width_is_named(graft, base, fur, tmp_path):
    generator = clipgraft.load(graft, inference=InferenceConfig(engine="torch"))
    with pytest.raises(CheckpointError, match=rf"EasyFur\.safetensors: .* {WIDTH} wide, .* takes 16;"):
        generator.generate("EasyFur", num_inference_steps=1, embeddings=[str(fur)])
    own = write(tmp_path / "own.safetensors", width=tiny.TEXT_WIDTH)
    plain, adapted = (
        generator.generate("An own dog", num_inference_steps=1, embeddings=files) for files in ((), (own,))
    )
    assert not np.array_equal(*(np.asarray(each.image) for each in (plain[0], adapted[0])))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, "is an embedding for SDXL"),
        (
            {"ip_adapter.1.to_k_ip.weight": torch.zeros(2, 2)},
            "is an IP-Adapter, not an embedding; name it with",
        ),
        ({"lora_te_x.alpha": torch.zeros(1)}, "is a LoRA, not an embedding; name it with --lora"),
        ({f"layer{n}": torch.zeros(1) for n in range(40)}, "is no embedding: it holds 40 tensors"),
        ({"emb_params": torch.zeros(1, 2, 3)}, r"'emb_params' has the shape \(1, 2, 3\)"),
        ({"emb_params": torch.tensor(1.0)}, r"has the shape \(\)"),
        ({"emb_params": torch.full((1, 24), float("inf"))}, "holds NaN or infinity"),
        ({"emb_params": torch.zeros(76, 24)}, "is an embedding of 76 vectors, and 75 fit"),
        ({}, "holds 0 tensors"),
    ],
)
def test_other_files_are_named(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_embedding(tmp_path / "x.safetensors")


def test_files_are_checked_before_a_base_is_loaded(tmp_path, fur):
    (tmp_path / "x.PT").write_bytes(b"pickled")
    (tmp_path / "EasyFur.safetensors").write_bytes(fur.read_bytes())
    for files, message in {
        ("nowhere.safetensors",): "no embedding at .*nowhere",
        (tmp_path / "x.PT",): r"x\.PT is pickled, and may run code",
        (fur, tmp_path / "EasyFur.safetensors"): "two embeddings are called 'EasyFur'",
        ("x",) * 33: "should have at most 32 items",
    }.items():
        with pytest.raises(UserError, match=message):
            image_request("A dog", embeddings=files)


def test_another_file_of_the_same_name_is_read_again(pipeline, tmp_path):
    file, cache = write(tmp_path / "own.safetensors"), PromptEmbedCache(pipeline)
    before = cache("own", params_of(file)).clone()
    write(file, seed=5, vectors=3)
    assert not torch.equal(cache("own", params_of(file)), before)
    assert len(Embeddings(params_of(file).embeddings).vectors) == 3


@pytest.mark.integration
def test_a_folder_gives_what_prompts_name_by_file(base, fur, tmp_path):
    folder = tmp_path / "embeddings"
    (folder / "animals").mkdir(parents=True)
    shutil.copy(fur, folder / "animals")
    write(folder / "unused.safetensors", width=3)  # would be refused if it were read
    settings = ["--base", base, "--steps", 2, "--device", "cpu", "--negative-prompt", "blurry"]
    prompts = ["A dog , easyfur", "A dog"]
    assert call("generate", *prompts, *settings, "--embedding-dir", folder, "--out", tmp_path / "a") == 0
    assert call("generate", prompts[0], *settings, "--embedding", fur, "--out", tmp_path / "b") == 0
    named, plain = rows_of(tmp_path / "a")
    [alone] = rows_of(tmp_path / "b")
    assert named["embeddings"] == alone["embeddings"]
    assert "embeddings" not in plain
    again = ["generate", "--from-image", tmp_path / "a" / named["file"], "--base", base, "--device", "cpu"]
    assert call(*again, "--embedding-dir", folder, "--out", tmp_path / "c") == 0
    first, second = ((tmp_path / name / named["file"]).read_bytes() for name in "ac")
    assert first == second


def test_a_missing_folder_and_a_double_name_are_refused(base, fur, tmp_path, capsys):
    options = ["generate", "A dog , easyfur", "--base", base, "--out", tmp_path / "out", "--embedding-dir"]
    assert f"no folder {tmp_path / 'gone'}; name one with" in refused(capsys, *options, tmp_path / "gone")
    for name in ("one", "two"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        shutil.copy(fur, tmp_path / "folder" / name)
    assert "has several embeddings 'easyfur'" in refused(capsys, *options, tmp_path / "folder")
