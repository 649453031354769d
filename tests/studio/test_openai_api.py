"""OpenAI's routes, with the real `openai` client on loopback and by hand."""

import base64
import http.client
import io
import json
import os
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from app_client import TOKEN, base64_of, png_bytes, refused
from clipgraft.data.transforms import clip_pixel_values, tokenize
from clipgraft.models.clip import encode_images, encode_text, load_clip
from clipgraft.studio.api import build_app

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_images_come_as_base64_or_as_addresses_of_this_server(openai_client, address):
    generated = openai_client.images.generate(
        prompt="A dog", model="tiny/after", n=2, size="64x64", user="me", extra_body={"seed": 4, "steps": 2}
    )
    assert [opened(image.b64_json).size for image in generated.data] == [(64, 64)] * 2
    assert [image.seed for image in generated.data] == [4, 5]
    again = openai_client.images.generate(
        prompt="A dog", size="64x64", response_format="url", extra_body={"seed": 4, "steps": 2}
    )
    url = again.data[0].url
    assert url.startswith(f"{address}/v1/images/")
    content = openai_client._client.get(url, headers={"Authorization": f"Bearer {TOKEN}"}).content
    alone = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert np.abs(alone - np.asarray(opened(generated.data[0].b64_json)).astype(int)).max() <= 12


def test_output_format_is_what_was_asked_for(openai_client):
    for image_format in ("png", "jpeg", "webp"):
        generated = openai_client.images.generate(
            prompt="A dog", output_format=image_format, extra_body={"steps": 1}
        )
        assert opened(generated.data[0].b64_json).format == image_format.upper()


def test_texts_and_images_are_embedded_by_the_tuned_clip(openai_client, runs_dir):
    file = io.BytesIO()
    image = Image.radial_gradient("L").convert("RGB")
    image.save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    # The client asks for base64 by itself, and decodes it.
    answer = openai_client.embeddings.create(model="tiny/after", input=["A dog", address, "A cat"])
    embeds = np.array([row.embedding for row in answer.data], dtype=np.float32)
    clip = load_clip(runs_dir / "tiny" / "finetune" / "clip")
    with torch.no_grad():
        texts = encode_text(clip.model, tokenize(["A dog", "A cat"], clip.tokenizer))
        image = encode_images(clip.model, clip_pixel_values([image], clip.image_processor))
    expected = torch.stack([texts[0], image[0], texts[1]]).numpy()
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    assert answer.usage.prompt_tokens == 8
    floats = openai_client.embeddings.create(model="tiny/after", input="A dog", encoding_format="float")
    np.testing.assert_allclose(floats.data[0].embedding, expected[0], atol=1e-5)


def test_models_are_listed(openai_client):
    assert {"tiny/after", "flatland"} <= {model.id for model in openai_client.models.list()}
    assert openai_client.models.retrieve("tiny/before").description == "CLIP before fine-tuning"


def test_every_listed_model_is_retrieved_by_its_name(openai_client):
    for model in openai_client.models.list():
        assert openai_client.models.retrieve(model.id) == model
    for name in ("tiny/nope", "nope", "tiny/after/x"):
        with pytest.raises(openai.NotFoundError) as error:
            openai_client.models.retrieve(name)
        assert error.value.code == "model_not_found"


def test_a_refused_upload_is_told_so_while_it_is_still_sent(openai_client):
    file = io.BytesIO(os.urandom(8_000_000))  # more than any socket holds on the way
    for _ in range(3):
        with pytest.raises(openai.APIStatusError) as error:
            openai_client.audio.transcriptions.create(file=("a.wav", file), model="tiny/after")
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


def test_errors_are_those_that_the_client_knows(openai_client, address, service):
    with pytest.raises(openai.NotFoundError) as error:
        openai_client.images.generate(prompt="A dog", model="dall-e-3")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    for values in (
        {"n": 11},
        {"size": "63x64"},
        {"prompt": ""},
        {"extra_body": {"steps": 0}},
        {"extra_body": {"frame_count": 3}},
    ):
        with pytest.raises(openai.UnprocessableEntityError) as error:
            openai_client.images.generate(**{"prompt": "A dog"} | values)
        assert error.value.type == "invalid_request_error"
    for url in ("http://169.254.169.254/latest", "file:///etc/passwd"):
        with pytest.raises(openai.UnprocessableEntityError, match="nothing is fetched"):
            openai_client.embeddings.create(model="flatland", input=[{"image": url}])
    with pytest.raises(openai.AuthenticationError, match="a token is needed"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="no", max_retries=0).models.list()
    service.queue.max_waiting = 1
    with pytest.raises(openai.RateLimitError) as error:
        openai_client.images.generate(prompt="A dog", n=2)
    assert int(error.value.response.headers["retry-after"]) >= 1


def test_hanging_up_cancels(openai_client, service):
    with pytest.raises(openai.APITimeoutError):
        openai_client.images.generate(prompt="A dog", n=10, timeout=0.3, extra_body={"steps": 150})
    job = service.queue.jobs(1)[0]
    assert service.wait(job.id).result(timeout=20).state == "cancelled"


def call_in_thread(client, **values) -> tuple[threading.Thread, list]:
    """Ask for images as OpenAI's clients do; the thread's end, and what was answered."""
    answers = []
    body = {"prompt": "A dog", "seed": 1} | values

    def ask():
        answers.append(client.post("/v1/images/generations", json=body))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, answers


def only_job(service):
    give_up = time.monotonic() + 20
    while not service.queue.jobs(1):
        assert time.monotonic() < give_up
        time.sleep(0.005)
    return service.queue.jobs(1)[0]


def test_a_call_that_somebody_cancels_is_told_so(client, service):
    thread, answers = call_in_thread(client, n=10, steps=150)
    client.post(f"/v1/jobs/{only_job(service).id}/cancel", json={})
    thread.join(timeout=20)
    assert refused(answers[0], 409) == "the job was cancelled while it was waited for"


@pytest.mark.parametrize(
    ("state", "error", "status", "kind", "message"),
    [
        ("blocked", "", 400, "invalid_request_error", "blocked by the base's safety checker"),
        ("failed_nan", "", 500, "server_error", "failed: NaN values"),
        ("failed_black", "", 500, "server_error", "failed: all black"),
        ("failed", "MemoryError: too little", 500, "server_error", "MemoryError: too little"),
        (
            "failed",
            "no space left on the disk (a.png)",
            503,
            "server_error",
            "no space left on the disk (a.png)",
        ),
    ],
)
def test_a_call_whose_image_does_not_come_out_says_why(service, state, error, status, kind, message):
    client = TestClient(build_app(service), base_url="http://localhost")  # not started: the test draws
    thread, answers = call_in_thread(client)
    job = only_job(service)
    [row] = service.queue.take(1)
    service.queue.finish_image(row.number, state)
    service.settle([job.number], error)
    thread.join(timeout=20)
    assert refused(answers[0], status) == message
    assert answers[0].json()["error"]["type"] == kind


def _bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels, one bit each."""
    chunks = (
        (b"IHDR", (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])),
        (b"IDAT", zlib.compress(bytes(30_000 * 3751), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in chunks
    )


HOSTILE = {
    "a bomb": (_bomb, "pixels"),
    "a cut-off file": (lambda: png_bytes()[:-30], "cut off"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_by_every_route(client, name):
    make, message = HOSTILE[name]
    content = make()
    upload = client.post("/v1/images/settings", content=content, headers={"content-type": "image/png"})
    assert message in refused(upload, 422)
    body = {"model": "flatland", "input": [{"image": base64_of(content)}]}
    assert message in refused(client.post("/v1/embeddings", json=body), 422)
    assert client.get("/health").status_code == client.head("/health").status_code == 200


def test_a_record_nested_without_end_is_no_record(client):
    content = png_bytes(clipgraft="[" * 100_000)
    answer = client.post("/v1/images/settings", content=content, headers={"content-type": "image/png"})
    assert "does not hold its settings" in refused(answer, 422)


def test_pixels_of_a_request_are_bounded_before_decoding(service):
    service.limits = service.limits.model_copy(update={"max_request_pixels": 3000})
    damaged = png_bytes()[:-40] + bytes(28) + png_bytes()[-12:]  # which decoding would say
    client = TestClient(build_app(service), base_url="http://localhost")
    body = {"model": "flatland", "input": [{"image": base64_of(damaged)}] * 3}
    message = "the request's 3 images have 3,600 pixels together; at most 3,000 are taken"
    assert message in refused(client.post("/v1/embeddings", json=body), 422)
    body["input"] = body["input"][:2]
    assert "damaged" in refused(client.post("/v1/embeddings", json=body), 422)


def test_images_are_embedded_in_their_order_however_many(client):
    images = [{"image": base64_of(png_bytes((40 + n, 60 - n)))} for n in range(10)]
    embed = lambda items: client.post("/v1/embeddings", json={"model": "tiny/after", "input": items}).json()  # noqa: E731
    together = embed([*images[:5], "A dog", *images[5:]])["data"]
    for index in (0, 5, 6, 10):
        alone = embed([[*images[:5], "A dog", *images[5:]][index]])["data"][0]
        assert together[index]["embedding"] == pytest.approx(alone["embedding"], abs=1e-5)
