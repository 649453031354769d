"""The real `openai` client against a studio on loopback."""

import base64
import http.client
import io
import json
import os
import threading
import time

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from clipgraft.data.transforms import clip_pixel_values, tokenize
from clipgraft.models.clip import encode_images, encode_text, load_clip
from clipgraft.studio.api import build_app
from clipgraft.studio.security import Access
from clipgraft.studio.server import _bound

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
TOKEN = "sk-" + "x" * 37


@pytest.fixture
def address(service):
    """A studio that asks for a token, on a free port of loopback."""
    with _bound("127.0.0.1", 0) as listener:
        config = uvicorn.Config(build_app(service, Access(TOKEN)), log_config=None, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as made:
        yield made


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_images_come_as_base64_or_as_addresses_of_this_server(client, address):
    drawn = client.images.generate(
        prompt="A dog", model="tiny/after", n=2, size="64x64", user="me", extra_body={"seed": 4, "steps": 2}
    )
    assert [opened(image.b64_json).size for image in drawn.data] == [(64, 64)] * 2
    assert [image.seed for image in drawn.data] == [4, 5]
    again = client.images.generate(
        prompt="A dog", size="64x64", response_format="url", extra_body={"seed": 4, "steps": 2}
    )
    url = again.data[0].url
    assert url.startswith(f"{address}/v1/images/")
    content = client._client.get(url, headers={"Authorization": f"Bearer {TOKEN}"}).content
    alone = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert np.abs(alone - np.asarray(opened(drawn.data[0].b64_json)).astype(int)).max() <= 12


def test_output_format_is_what_was_asked_for(client):
    for image_format in ("png", "jpeg", "webp"):
        drawn = client.images.generate(prompt="A dog", output_format=image_format, extra_body={"steps": 1})
        assert opened(drawn.data[0].b64_json).format == image_format.upper()


def test_texts_and_images_are_embedded_as_by_the_fine_tuned_clip(client, runs_dir):
    file = io.BytesIO()
    image = Image.radial_gradient("L").convert("RGB")
    image.save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    # The client asks for base64 by itself, and decodes it.
    answer = client.embeddings.create(model="tiny/after", input=["A dog", address, "A cat"])
    embeds = np.array([row.embedding for row in answer.data], dtype=np.float32)
    clip = load_clip(runs_dir / "tiny" / "finetune" / "clip")
    with torch.no_grad():
        texts = encode_text(clip.model, tokenize(["A dog", "A cat"], clip.tokenizer).input_ids)
        image = encode_images(clip.model, clip_pixel_values([image], clip.image_processor))
    expected = torch.stack([texts[0], image[0], texts[1]]).numpy()
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    assert answer.usage.prompt_tokens == 8
    floats = client.embeddings.create(model="tiny/after", input="A dog", encoding_format="float")
    np.testing.assert_allclose(floats.data[0].embedding, expected[0], atol=1e-5)


def test_models_are_listed(client):
    assert {"tiny/after", "flatland"} <= {model.id for model in client.models.list()}


def test_every_listed_model_is_retrieved_by_its_name(client):
    for model in client.models.list():
        assert client.models.retrieve(model.id) == model
    for name in ("tiny/nope", "nope", "tiny/after/x"):
        with pytest.raises(openai.NotFoundError) as error:
            client.models.retrieve(name)
        assert error.value.code == "model_not_found"


def test_a_refused_upload_is_told_so_while_it_is_still_sent(client):
    file = io.BytesIO(os.urandom(8_000_000))  # more than any socket holds on the way
    for _ in range(3):
        with pytest.raises(openai.APIStatusError) as error:
            client.images.edit(image=("a.png", file, "image/png"), prompt="A dog")
        assert error.value.status_code == 415


@pytest.mark.parametrize(("num_bytes", "token", "status"), [(20_000_000, TOKEN, 413), (8_000_000, "no", 401)])
def test_a_refused_body_is_read_so_that_no_client_is_reset(address, num_bytes, token, status):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}
    for chunked in (False, True):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
        body = (bytes(1 << 20) for _ in range(num_bytes >> 20)) if chunked else bytes(num_bytes)
        connection.request("POST", "/v1/images/settings", body, headers)
        answer = connection.getresponse()
        assert answer.status == status
        assert json.loads(answer.read())["error"]["message"]
        connection.close()


def test_errors_are_those_that_the_client_knows(client, address, service):
    with pytest.raises(openai.NotFoundError) as error:
        client.images.generate(prompt="A dog", model="dall-e-3")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    for values in (
        {"n": 11},
        {"size": "63x64"},
        {"prompt": ""},
        {"extra_body": {"steps": 0}},
        {"style": "vivid"},
    ):
        with pytest.raises(openai.UnprocessableEntityError) as error:
            client.images.generate(**{"prompt": "A dog"} | values)
        assert error.value.type == "invalid_request_error"
    for url in ("http://169.254.169.254/latest", "file:///etc/passwd"):
        with pytest.raises(openai.UnprocessableEntityError, match="nothing is fetched"):
            client.embeddings.create(model="flatland", input=[{"image": url}])
    with pytest.raises(openai.AuthenticationError, match="a token is needed"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="no", max_retries=0).models.list()
    service.queue.max_waiting = 1
    with pytest.raises(openai.RateLimitError) as error:
        client.images.generate(prompt="A dog", n=2)
    assert int(error.value.response.headers["retry-after"]) >= 1


def test_who_hangs_up_is_not_drawn_for_any_further(client, service):
    with pytest.raises(openai.APITimeoutError):
        client.images.generate(prompt="A dog", n=10, timeout=0.3, extra_body={"steps": 150})
    job = service.queue.jobs(1)[0]
    assert service.wait(job.id).result(timeout=20).state == "cancelled"
