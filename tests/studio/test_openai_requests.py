"""What OpenAI's clients send besides a prompt: fields without effect, streams, token ids."""

import base64
import io

import pytest
from PIL import Image

from app_client import TOKEN, refused
from clipgraft.studio.database import UnavailableError

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
SMALL = {"prompt": "A dog", "model": "tiny/after", "size": "64x64"}


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ({"style": "vivid", "quality": "hd"}, ["quality has no effect", "style has no effect"]),
        ({"background": "transparent"}, ["background has no effect"]),
        ({"moderation": "low"}, ["moderation has no effect"]),
        ({"extra_body": {"complexity": "high"}}, ["complexity has no effect"]),
        ({"quality": "auto", "style": "natural", "background": "auto", "moderation": "auto"}, []),
        ({"quality": "", "style": None}, ["quality has no effect"]),
        ({"quality": "of next year"}, ["quality has no effect"]),
        ({"partial_images": 2}, ["partial_images (needs stream) has no effect"]),
        ({"output_compression": 50}, ["output_compression (PNG loses nothing) has no effect"]),
        ({"output_compression": 50, "output_format": "webp"}, []),
    ],
)  # fmt: skip
def test_fields_without_effect_are_noted_and_images_drawn(openai_client, values, notes):
    answer = openai_client.images.generate(**SMALL | {"extra_body": {"steps": 1}} | values)
    assert opened(answer.data[0].b64_json).size == (64, 64)
    assert answer.notes == notes


def test_output_compression_is_the_quality_of_base64_and_url(openai_client):
    def size(**values) -> int:
        answer = openai_client.images.generate(
            **SMALL, output_format="jpeg", **values, extra_body={"seed": 1}
        )
        [image] = answer.data
        if image.url is None:
            return len(base64.b64decode(image.b64_json))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return len(openai_client._client.get(image.url, headers=headers).content)

    small, usual, large = size(output_compression=10), size(), size(output_compression=100)
    assert small < usual < large
    assert size(output_compression=10, response_format="url") == small


def test_a_stream_ends_with_the_image_that_a_call_gives(openai_client):
    values = SMALL | {"extra_body": {"seed": 3, "steps": 2}}
    expected = openai_client.images.generate(**values).data[0].b64_json
    [event] = openai_client.images.generate(**values, stream=True)
    assert (event.type, event.size, event.output_format) == ("image_generation.completed", "64x64", "png")
    assert opened(event.b64_json).tobytes() == opened(expected).tobytes()
    assert event.notes == []


@pytest.mark.integration
def test_partial_images_come_before_each_completed_one(openai_client):
    values = SMALL | {"size": "128x128", "n": 2, "output_format": "webp", "quality": "high"}
    events = list(
        openai_client.images.generate(**values, stream=True, partial_images=3, extra_body={"steps": 150})
    )
    completed = [event for event in events if event.type == "image_generation.completed"]
    assert len(completed) == 2
    assert all(event.notes == ["quality has no effect"] for event in completed)
    for final in completed:
        partial = [event for event in events[:-2] if event.id == final.id]
        assert [event.partial_image_index for event in partial] == list(range(len(partial)))
        assert 1 <= len(partial) <= 3
        assert {event.type for event in partial} == {"image_generation.partial_image"}
        images = [opened(event.b64_json) for event in (*partial, final)]
        assert {(image.format, image.size) for image in images} == {("WEBP", (128, 128))}


@pytest.mark.integration
def test_hanging_up_a_stream_cancels_its_job(openai_client, service):
    slow = {"size": "128x128", "n": 4, "extra_body": {"steps": 150}}
    with openai_client.images.generate(**SMALL | slow, stream=True, partial_images=3) as events:
        next(iter(events))
    assert service.wait(service.queue.jobs(1)[0].id).result(timeout=20).state == "cancelled"


@pytest.mark.integration
def test_a_stream_whose_job_is_cancelled_ends_with_an_error(openai_client, service):
    slow = {"size": "128x128", "n": 4, "extra_body": {"steps": 150}}
    with openai_client.images.generate(**SMALL | slow, stream=True, partial_images=1) as events:
        next(iter(events))
        service.cancel(service.queue.jobs(1)[0].id)
        with pytest.raises(openai.APIError, match="cancelled while it was waited for"):
            list(events)


@pytest.mark.integration
def test_a_stream_whose_end_cannot_be_read_ends_with_an_error(openai_client, service):
    slow = {"size": "128x128", "n": 4, "extra_body": {"steps": 150}}
    with openai_client.images.generate(**SMALL | slow, stream=True, partial_images=1) as events:
        next(iter(events))
        service._tell_unavailable(service.queue.jobs(1)[0].number, UnavailableError("queue.sqlite is locked"))
        with pytest.raises(openai.APIError, match=r"queue\.sqlite is locked"):
            list(events)


def test_a_stream_of_addresses_is_refused(shared_client):
    body = {"prompt": "A dog", "stream": True, "response_format": "url"}
    message = refused(shared_client.post("/v1/images/generations", json=body), 422)
    assert message == "body: a stream sends images as b64_json; leave out response_format or stream"


@pytest.mark.parametrize("ids", [[[57668, 53901]], [57668, 53901], [["a"], [1]], 7])
def test_token_ids_are_refused_with_what_to_set(shared_client, ids):
    body = {"model": "flatland", "input": ids, "encoding_format": "base64"}
    message = refused(shared_client.post("/v1/embeddings", json=body), 422)
    assert "token ids are another tokenizer's; send texts" in message
    assert "check_embedding_ctx_length=False" in message


def test_dimensions_are_refused_by_name(openai_client):
    with pytest.raises(openai.UnprocessableEntityError) as error:
        openai_client.embeddings.create(model="flatland", input="A dog", dimensions=256)
    message = "dimensions: embeddings have their CLIP's own width; leave it out; got 256"
    assert (error.value.param, error.value.body["message"]) == ("dimensions", message)
