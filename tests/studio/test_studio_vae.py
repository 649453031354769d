"""A VAE of the server's own: every image is decoded by it, says so, and is told from other ones."""

import io
import json

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app_client import generate
from clipgraft.models.base import FrozenBase
from clipgraft.models.weights import module_sha256
from clipgraft.sampling_params import InferenceConfig
from clipgraft.studio.api import build_app
from clipgraft.studio.service import Service
from helpers import refused
from vae_world import fine_tuned

PNG = {"content-type": "image/png"}


@pytest.fixture
def vae(runs_dir, tmp_path):
    """A fine-tuned VAE for the tiny base."""
    tuned = fine_tuned(FrozenBase.load(str(runs_dir.parent / "base"), components=["vae"]).vae)
    tuned.save_pretrained(tmp_path / "kl-tuned")
    return tmp_path / "kl-tuned"


def drawn(client) -> bytes:
    """Generate an image and return its file."""
    job = generate(client, models=["tiny/after"])
    assert job["state"] == "done", job
    return client.get(f"/v1/images/{job['images'][0]['id']}.png").content


def notes_on(client, content: bytes) -> list[str]:
    return client.post("/v1/images/settings", content=content, headers=PNG).json()["notes"]


@pytest.mark.integration
def test_every_image_is_decoded_by_the_servers_vae(client, runs_dir, tmp_path, vae):
    inference = InferenceConfig(vae=str(vae))
    service = Service(runs_dir, tmp_path / "own", device="cpu", inference=inference)
    plain = drawn(client)
    with TestClient(build_app(service), base_url="http://localhost") as other:
        assert other.get("/v1/models").json()["vae"] == "kl-tuned"
        content = drawn(other)
        assert notes_on(other, content) == []
        assert notes_on(other, plain) == ["not here: the base's own VAE"]
    assert client.get("/v1/models").json()["vae"] == ""
    assert notes_on(client, content) == ["not here: VAE kl-tuned"]
    image = Image.open(io.BytesIO(content))
    models = json.loads(image.text["clipgraft"])["models"]
    tuned = FrozenBase.load(str(runs_dir.parent / "base"), components=["vae"]).vae
    assert models["vae"] == "kl-tuned"
    assert models["vae_sha256"] == module_sha256(fine_tuned(tuned))
    assert str(tmp_path) not in "".join(image.text.values())
    assert image.tobytes() != Image.open(io.BytesIO(plain)).tobytes()


def test_a_vae_that_is_not_there_ends_the_start(runs_dir, tmp_path, capsys):
    command = ["studio", runs_dir, "--out", tmp_path / "home", "--port", 0, "--vae"]
    message = refused(capsys, *command, tmp_path / "none.safetensors")
    assert message.endswith("none.safetensors; name a .safetensors file, a folder or a hub id")
    (tmp_path / "vae.ckpt").write_bytes(b"")
    assert "vae.ckpt" in refused(capsys, *command, tmp_path / "vae.ckpt")
    assert not (tmp_path / "home").exists()
