"""Edits and variations of images, with the real `openai` client on loopback and by hand."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app_client import refused
from clipgraft.generation.requests import ImageRequest
from clipgraft.sampling_params import SamplingParams

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
SETTINGS = {"seed": "4", "steps": "3", "guidance_scale": "2.0"}


def as_file(image: Image.Image, name: str = "image.png") -> tuple[str, bytes, str]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return name, file.getvalue(), "image/png"


def picture() -> Image.Image:
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    ImageDraw.Draw(image).rectangle((0, 16, 63, 40), fill=(20, 60, 180))
    return image


def white_mask() -> Image.Image:
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=255)
    return mask


def transparent(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image, transparent where a mask is white."""
    found = image.convert("RGBA")
    found.putalpha(mask.point(lambda value: 255 - value))
    return found


def pixels(answer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))))


def drawn(service, tmp_path, prompt="A dog", with_mask=True, **params):
    """What Python makes of the same files and settings."""
    picture().save(tmp_path / "picture.png")
    white_mask().save(tmp_path / "mask.png")
    files = {"init_image": tmp_path / "picture.png", "mask_image": tmp_path / "mask.png" if with_mask else ""}
    values = {"seed": 4, "num_inference_steps": 3, "guidance_scale": 2.0, **files, **params}
    with service.cache.lock:
        generator = service.generator("tiny/after")
        return np.asarray(next(generator.sample([ImageRequest(prompt, SamplingParams.build(values))])).image)


def test_edits_within_a_mask_are_those_of_python(openai_client, service, tmp_path):
    expected = drawn(service, tmp_path)
    opaque = Image.new("RGBA", (64, 64), "black")
    for image, mask in (
        (picture(), white_mask()),
        (picture(), transparent(opaque, white_mask())),  # OpenAI's own form
        (transparent(picture(), white_mask()), None),
    ):
        masks = {"mask": as_file(mask, "mask.png")} if mask else {}
        answer = openai_client.images.edit(
            image=as_file(image),
            prompt="A dog",
            model="tiny/after",
            input_fidelity="high",
            extra_body=SETTINGS,
            **masks,
        )
        if mask:
            assert np.array_equal(pixels(answer), expected)
        assert answer.data[0].seed == 4
        assert answer.notes == ["input_fidelity has no effect"]
    row = service.queue.history()[0]
    assert len(row.settings["mask_image"]) == 64


def test_edit_without_a_mask_changes_all_of_the_image(openai_client, service, tmp_path):
    expected = drawn(service, tmp_path, with_mask=False, strength=0.5)
    answer = openai_client.images.edit(
        image=[as_file(picture())],
        prompt="A dog",
        model="tiny/after",
        extra_body=SETTINGS | {"strength": "0.5"},
    )
    assert np.array_equal(pixels(answer), expected)


def test_variation_needs_no_prompt(openai_client, service, tmp_path):
    expected = drawn(service, tmp_path, prompt="", with_mask=False)
    answer = openai_client.images.create_variation(
        image=as_file(picture()), model="tiny/after", response_format="b64_json", extra_body=SETTINGS
    )
    assert np.array_equal(pixels(answer), expected)
    several = openai_client.images.create_variation(image=as_file(picture()), n=2, extra_body=SETTINGS)
    assert [image.seed for image in several.data] == [4, 5]


def test_edit_is_streamed(openai_client):
    events = list(
        openai_client.images.edit(
            image=as_file(picture()), prompt="A dog", stream=True, partial_images=1, extra_body=SETTINGS
        )
    )
    assert {event.type for event in events[:-1]} <= {"image_edit.partial_image"}
    assert events[-1].type == "image_edit.completed"


FORM = {"prompt": "A dog", "steps": "2"}
IMAGE = {"image": as_file(picture())}
REFUSED = {
    "no image": (FORM, {}, "image: the file to start from is missing"),
    "no prompt": ({"steps": "1"}, IMAGE, "prompt: Field required"),
    "no number": (FORM | {"seed": "x"}, IMAGE, "seed: "),
    "an unknown field": (FORM | {"frames": "3"}, IMAGE, "frames: Unknown field"),
    "no strength": (
        FORM | {"strength": "0"},
        IMAGE,
        "strength: Input should be",
    ),
    "text": (FORM, {"image": ("a.png", b"no image", "image/png")}, "the image is no image of a known format"),
    "a small image": (FORM, {"image": as_file(Image.new("RGB", (8, 8)))}, "each side needs at least 16"),
    "another file": (
        FORM,
        IMAGE | {"sketch": as_file(picture())},
        "sketch: files are taken",
    ),
    "a mask of another size": (
        FORM,
        IMAGE | {"mask": as_file(Image.new("L", (64, 72)))},
        "must be of one size in pixels; got init_image 64x64 and mask_image 64x72",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_form_is_refused_by_name(shared_client, case):
    values, files, message = REFUSED[case]
    parts = {name: (None, value) for name, value in values.items()}
    answer = shared_client.post("/v1/images/edits", files=parts | files)
    assert message in refused(answer, 422)


def test_damaged_form_is_refused(shared_client):
    for content in (
        b"",
        b"--x",
        b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
        b"\x00" * 100,
    ):
        for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
            answer = shared_client.post("/v1/images/edits", content=content, headers={"content-type": kind})
            assert answer.status_code in (400, 422), answer.text
    many = {f"field{index}": "1" for index in range(100)}
    answer = shared_client.post("/v1/images/edits", data=many, files={"image": as_file(picture())})
    assert "Too many fields" in refused(answer, 400)


def test_uploads_live_as_long_as_their_images(client, service, monkeypatch):
    monkeypatch.setattr("clipgraft.studio.uploads.SECONDS_UNUSED", 0.0)
    files = {"image": as_file(picture()), "mask": as_file(white_mask())}
    answer = client.post("/v1/images/edits", data=FORM, files=files)
    assert answer.status_code == 200, answer.text
    assert len(list(service.uploads.folder.iterdir())) == 2
    assert client.delete(f"/v1/images/{answer.json()['data'][0]['id']}").json() == {"deleted": True}
    assert not list(service.uploads.folder.iterdir())
