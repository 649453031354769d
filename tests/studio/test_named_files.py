"""Requests that name uploaded images and models of the server's folder: the same images as from Python."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

import clipgraft
import tiny
from app_client import JOB, generate, refused
from clipgraft.errors import MissingFileError
from clipgraft.generation.request_adapters import find_lora
from clipgraft.studio.api import build_app
from clipgraft.studio.model_folder import ModelFolder
from clipgraft.studio.service import Service

PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def client(runs_dir, models_dir, tmp_path_factory):
    service = Service(runs_dir, tmp_path_factory.mktemp("home"), device="cpu", models_dir=models_dir)
    with TestClient(build_app(service), base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def ids(client, models_dir):
    """Ids of the uploaded images by name."""
    files = {path.stem: path.read_bytes() for path in models_dir.glob("*.png")}
    return {
        name: client.post("/v1/uploads", content=content, headers=PNG).json()["id"]
        for name, content in files.items()
    }


@pytest.fixture(scope="module")
def generator(runs_dir):
    return clipgraft.load(str(runs_dir.parent / "base"), device="cpu")


def named(kind, world, ids):
    """A request's fields over HTTP, and in Python."""
    picture, mask = world / "picture.png", world / "mask.png"
    edges, adapter = world / "controlnet" / "edges", world / "ipadapter" / "adapter.safetensors"
    return {
        "mask": (
            {"init_image": ids["picture"], "mask_image": ids["mask"], "strength": 1.0},
            {"init_image": picture, "mask_image": mask, "strength": 1.0},
        ),
        "lora": (
            {"loras": [{"name": "fur/soft", "strength": 0.7, "text_strength": 0.2}]},
            {"loras": [f"{world}/Lora/fur/soft.safetensors:0.7:0.2"]},
        ),
        "tag": (
            {"prompt": "A dog runs on the beach <lora:soft:0.5>", "prompt_syntax": "weighted"},
            {"loras": [f"{world}/Lora/fur/soft.safetensors:0.5"], "prompt_syntax": "weighted"},
        ),
        "guides": (
            {
                "controls": [{"model": "edges", "image": ids["mask"], "scale": 0.8, "end": 0.7}],
                "ip_adapters": [{"model": "adapter", "image": ids["picture"], "scale": 0.6}],
            },
            {"controls": [f"{edges}={mask}@0.8:0-0.7"], "ip_adapters": [f"{adapter}={picture}@0.6"]},
        ),
        "embedding": (
            {"prompt": "A cosy dog", "embeddings": ["Cosy"]},
            {"prompt": "A cosy dog", "embeddings": [world / "embeddings" / "Cosy.safetensors"]},
        ),
        "word": (
            {"prompt": "A dog", "negative_prompt": "COSY", "prompt_syntax": "weighted"},
            {
                "prompt": "A dog",
                "negative_prompt": "COSY",
                "embeddings": [world / "embeddings" / "Cosy.safetensors"],
                "prompt_syntax": "weighted",
            },
        ),
    }[kind]


def holding(record: dict) -> bytes:
    file, texts = io.BytesIO(), PngInfo()
    texts.add_text("clipgraft", json.dumps(record))
    Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["mask", "lora", "tag", "guides", "embedding", "word"])
def test_an_image_equals_pythons_and_brings_its_settings_back(kind, client, models_dir, ids, generator):
    sent, own = named(kind, models_dir, ids)
    job = generate(client, models=["tiny/teacher"], guidance_scale=2.0, **sent)
    assert job["state"] == "done", job["error"]
    [row] = job["images"]
    content = client.get(f"/v1/images/{row['id']}.png").content
    found = Image.open(io.BytesIO(content))
    prompt = own.pop("prompt", JOB["prompt"])
    [expected] = generator.generate(
        prompt, seed=JOB["seed"], num_inference_steps=JOB["steps"], guidance_scale=2.0, **own
    )
    assert np.array_equal(np.asarray(found), np.asarray(expected.image))
    record = json.loads(found.text["clipgraft"])
    assert record["job"] == expected.metadata["job"]
    answer = client.post("/v1/images/settings", content=content, headers=PNG).json()
    assert answer["notes"] == []
    again = {name: answer[name] for name in row["settings"]}
    assert again | {"height": 0, "width": 0} == row["settings"]
    repeated = generate(client, models=["tiny/teacher"], **{k: v for k, v in again.items() if k != "prompt"},
                        prompt=again["prompt"])  # fmt: skip
    same = Image.open(io.BytesIO(client.get(f"/v1/images/{repeated['images'][0]['id']}.png").content))
    assert np.array_equal(np.asarray(same), np.asarray(found))


@pytest.mark.integration
def test_guides_without_a_name_are_told_or_refused(client, models_dir, ids):
    sent, _ = named("guides", models_dir, ids)
    job = generate(client, models=["tiny/teacher"], **sent)
    found = Image.open(io.BytesIO(client.get(f"/v1/images/{job['images'][0]['id']}.png").content))
    record = json.loads(found.text["clipgraft"])
    del record["studio"]["ip_adapters"]  # as without a studio
    answer = client.post("/v1/images/settings", content=holding(record), headers=PNG).json()
    assert [len(answer.get(kind, ())) for kind in ("controls", "ip_adapters")] == [1, 0]
    [note] = answer["notes"]
    assert note.startswith("not here: IP-Adapter (image's sha256 ")
    record["studio"]["controls"] = []
    answer = client.post("/v1/images/settings", content=holding(record), headers=PNG)
    assert refused(answer, 422) == "this image does not hold its settings: the record in it is damaged"


def test_models_are_listed_by_kind_with_the_width_they_take(client):
    width = tiny.TEACHER_WIDTH
    assert client.get("/v1/adapters").json() == {
        "loras": [{"name": "fur/soft", "width": width}, {"name": "other", "width": None}],
        "controls": [{"name": "edges", "width": width}],
        "ip_adapters": [{"name": "adapter", "width": width}],
        "embeddings": [{"name": "Cosy", "width": width, "words": ["Cosy"]}],
    }


def test_an_upload_is_kept_by_its_sum_and_sent_back_as_pixels(client, ids):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret place"
    file = io.BytesIO()
    Image.new("RGB", (80, 64), "green").save(file, "JPEG", exif=exif)
    answer = client.post("/v1/uploads", content=file.getvalue(), headers={"content-type": "image/jpeg"})
    assert (answer.json()["width"], answer.json()["height"]) == (64, 80)
    sent = client.get(f"/v1/uploads/{answer.json()['id']}.png").content
    assert Image.open(io.BytesIO(sent)).size == (64, 80)
    assert b"secret" not in sent
    assert "is no image" in refused(client.post("/v1/uploads", content=b"no", headers=PNG), 422)
    assert "no uploaded image" in refused(client.get(f"/v1/uploads/{'0' * 64}.png"), 404)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_phones_avif_is_uploaded_like_other_images(client):
    file = io.BytesIO()
    Image.new("RGB", (80, 64), "green").save(file, "AVIF")
    answer = client.post("/v1/uploads", content=file.getvalue(), headers={"content-type": "image/avif"})
    assert (answer.json()["width"], answer.json()["height"]) == (80, 64)


BAD = {
    "unknown LoRA": ({"loras": [{"name": "fur/sofd"}]}, 404, "no LoRA 'fur/sofd'; there are e.g. fur/soft"),
    "path": ({"loras": [{"name": "../secret"}]}, 404, "this studio has no LoRA '../secret'"),
    "absolute path": ({"embeddings": ["/etc/passwd"]}, 404, "this studio has no embedding 'passwd'"),
    "strength": ({"loras": [{"name": "fur/soft", "strength": 1e9}]}, 422, "less than or equal to 10"),
    "too many": ({"loras": [{"name": "fur/soft"}] * 10_000}, 422, "at most 32"),
    "no upload": ({"init_image": "0" * 64}, 404, "no uploaded image 0000000000; upload it"),
    "path of an image": ({"init_image": "/etc/passwd"}, 422, "init_image: expected the id of an up"),
    "mask alone": ({"mask_image": "mask"}, 422, "mask_image (--mask) needs the image"),
    "mask's size": (
        {"init_image": "picture", "mask_image": "small"},
        422,
        "of one size in pixels; got init_image 64x64 and mask_image 32x32",
    ),
    "range": (
        {"controls": [{"model": "edges", "image": "mask", "start": 0.8, "end": 0.2}]},
        422,
        "end must be above start",
    ),
    "unknown tag": (
        {"prompt": "A dog <lora:hair:1>", "prompt_syntax": "weighted"},
        404,
        "no LoRA 'hair' (.safetensors) in Lora",
    ),
    "unknown field": ({"loras": [{"name": "fur/soft", "file": "x"}]}, 422, "Unknown field"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_there_is_refused_in_one_line(name, client, ids):
    values, status, message = BAD[name]
    text = json.dumps(JOB | values)
    for short, upload_id in ids.items():
        text = text.replace(f'"{short}"', f'"{upload_id}"')
    answer = client.post("/v1/jobs", content=text, headers={"content-type": "application/json"})
    found = refused(answer, status)
    assert message in found
    assert "\n" not in found
    assert "/tmp" not in found


def test_models_say_the_width_that_fits_them(client):
    rows = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
    assert rows["tiny/after"]["width"] == tiny.TEACHER_WIDTH
    assert rows["flatland/teacher"]["width"] == 192


def test_a_folder_of_models_has_to_be_there(runs_dir, tmp_path):
    with pytest.raises(MissingFileError, match=r"^--models .*gone: no such folder$"):
        Service(runs_dir, tmp_path, device="cpu", models_dir=tmp_path / "gone")


def test_models_are_listed_whatever_the_case_of_their_suffix(models_dir, tmp_path):
    folder = tmp_path / "models"
    (folder / "Lora" / "fur").mkdir(parents=True)
    shutil.copy(models_dir / "Lora" / "fur" / "soft.safetensors", folder / "Lora/fur/Soft.SAFETENSORS")
    found = ModelFolder(folder)
    assert found.names("loras") == ["fur/Soft"]
    file = find_lora(found.folder("loras"), "soft")
    assert found.path("loras", found.name_of("loras", str(file))) == file


def test_a_lora_for_another_base_is_no_fault_of_the_server(client):
    values = {"prompt": "A dog", "model": "tiny/teacher", "size": "64x64", "loras": [{"name": "other"}]}
    message = refused(client.post("/v1/images/generations", json=values), 409)
    assert message.startswith("other.safetensors is a LoRA for another base: it changes 1 unet layer (other)")
    job = generate(client, models=["tiny/teacher"], loras=[{"name": "other"}])
    assert (job["state"], job["error"]) == ("failed", message)


def test_a_studio_without_models_says_how_it_gets_some(shared_client):
    answer = shared_client.post("/v1/jobs", json=JOB | {"loras": [{"name": "fur"}]})
    message = "this studio has no LoRAs; start it with --models and a folder that has loras/"
    assert refused(answer, 422) == message
    tagged = JOB | {"prompt": "A dog <lora:fur:1>", "prompt_syntax": "weighted"}
    assert refused(shared_client.post("/v1/jobs", json=tagged), 422) == message
    assert shared_client.get("/v1/adapters").json()["loras"] == []
