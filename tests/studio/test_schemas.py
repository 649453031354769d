"""Requests that are refused: ten bad values of every field, bodies, bounds."""

import json
import re

import pytest

from app_client import JOB, base64_of, png_bytes, refused

PYTHON = re.compile("pattern|parse|interpret|after validation|unicode|[Tt]uple|constrained")
"""Words of pydantic's that tell a user nothing."""
DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    DEEP,
    b'{"prompt": "a", "prompt2": 1}',
    b"NaN",
    b"1e999",
]
BAD = {
    "prompt": [None, 1, True, [], {}, ["a"], "x" * 1_000_000, "\ud800", 1.5, "x" * 4001],
    "negative_prompt": [None, 1, True, [], {}, "x" * 4001, "\udfff", 0.0, ["a"], {"a": 1}],
    "seed": [-2, 2**64, 1.5, "1", True, [], {}, float("nan"), float("inf"), 10**400],
    "steps": [0, -1, 1001, 151, 2.5, "3", True, [], float("nan"), 10**30],
    "guidance_scale": [0, -1, 0.99, 101, "2", [], {}, float("nan"), float("inf"), True],
    "scheduler": [None, "", "nope", 1, [], {}, "DPM+++", "x" * 1000, True, "dpm++\0"],
    "width": [-8, 1, 9, 4104, 1032, 56, "64", 64.5, None, float("inf")],
    "height": [-8, 1, 9, 4104, 1032, 56, "64", 64.5, None, float("inf")],
    "num_images": [0, -1, 65, 17, 1.5, "1", None, [], True, 10**30],
    "models": ["tiny/after", None, [1], [None], ["x" * 300], ["no"], {}, [""], ["../x"], ["tiny/after"] * 9],
    "axes": [
        {}, "seed", [{}], [{"name": "nope", "values": [1]}], [{"name": "seed", "values": []}],
        [{"name": "seed", "values": ["a"]}], [{"name": "steps", "values": [1.5]}],
        [{"name": "seed", "values": [1]}] * 2, [{"name": "seed", "values": list(range(65))}],
        [{"name": "model", "values": ["", "/etc/passwd"]}],
    ],
    "client": [None, 1, True, [], {}, "x" * 65, 1.5, "\ud800", ["a"], {"a": 1}],
}  # fmt: skip


@pytest.mark.parametrize("field", BAD)
def test_bad_values_of_a_job_are_refused_in_a_sentence(shared_client, field):
    assert len(BAD[field]) == 10
    for value in BAD[field]:
        # Python's own writer lets NaN and half characters through, as a hostile client does.
        body = json.dumps(JOB | {field: value}).encode()
        answer = shared_client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 404, 422), (field, str(value)[:80], answer.text)
        message = refused(answer, answer.status_code)
        assert len(message) > 10
        assert not PYTHON.search(message), message
    assert shared_client.get("/v1/jobs").json() == {"jobs": []}


NO_LABELS = [1, True, [], {}, "x" * 65, 1.5, "\ud800", ["a"], {"a": 1}, 10**30]
IMAGES = {"prompt": "A dog", "steps": 1}
BAD_IMAGES = {
    "prompt": [None, 1, True, [], {}, "", "x" * 4001, "\ud800", 1.5, ["a"]],
    "model": [1, True, [], {}, "no", "../x", "x" * 201, "flatland", "\ud800", 1.5],
    "n": [0, -1, 11, 1.5, "1", [], {}, True, 10**30, float("nan")],
    "size": ["", "63x64", "8x8", "64", "x", "1032x64", "9999x9999", 64, [], "64x64x64"],
    "response_format": ["", "png", 1, [], {}, True, "URL", "b64", "url ", 1.5],
    "output_format": ["", "gif", 1, [], {}, True, "PNG", "jpg", "svg", 1.5],
    **dict.fromkeys(("quality", "style", "background", "moderation", "user"), NO_LABELS),
    "output_compression": [-1, 101, 1.5, "9", [], {}, True, "\ud800", float("nan"), 10**30],
    "partial_images": [-1, 4, 1.5, "2", [], {}, True, "\ud800", float("nan"), 10**30],
    "stream": [1, 0, "true", "", [], {}, 1.5, "\ud800", ["a"], {"a": 1}],
    **{name: BAD[name] for name in ("negative_prompt", "steps", "scheduler")},
    "seed": BAD["seed"],
    "guidance_scale": BAD["guidance_scale"],
}
EMBEDDINGS = {"input": "A dog", "model": "flatland"}
IMAGE = {"image": base64_of(png_bytes())}
BAD_EMBEDDINGS = {
    "input": [
        None, 1, [], {}, "", [""], [1, 2, 3], ["a"] * 257, [{"image": 1}], [IMAGE | {"url": "x"}],
    ],
    "model": [1, True, [], {}, "no", "../x", "x" * 201, "tiny/teacher", "\ud800", 1.5],
    "encoding_format": ["", "int8", 1, [], {}, True, "FLOAT", "b64", "base64 ", 1.5],
    "user": NO_LABELS,
    "dimensions": [0, 1, 512, -1, "512", [], {}, True, 1.5, "\ud800"],
}  # fmt: skip
PROMPT = {"prompt": "A dog"}
BAD_PROMPT = {
    "prompt": [None, 1, True, [], {}, ["a"], "x" * 4001, "\ud800", 1.5, float("nan")],
    "model": [1, True, [], {}, "no", "../x", "x" * 201, None, "\ud800", 1.5],
}
SEARCH = {"run": "tiny", "caption": "A dog"}
BAD_SEARCH = {
    "run": [None, 1, True, [], {}, "no", "..", "x" * 201, "\ud800", 1.5],
    "caption": [None, 1, True, [], {}, "", "x" * 4001, "\ud800", 1.5, ["a"]],
    "limit": [0, -1, 49, 1.5, "1", None, [], True, 10**30, float("nan")],
}
TRAINING = {"name": "dogs", "kind": "finetune", "data": ""}
BAD_TRAINING = {
    "name": [None, 1, "", "../x", "a/b", ".x", "x" * 65, "a b", "tiny", "\ud800"],
    "kind": [None, 1, "", "refine", "check", [], {}, True, "FINETUNE", "run"],
    "data": [None, 1, [], "..", "../x", "/etc", "no", "x" * 256, "\ud800", "a\0"],
    "recipe": [None, 1, [], "no", "../tiny", "/etc/passwd", "x" * 201, "\ud800", True, "recipe.toml"],
    "clip": [None, 1, [], "no", "../tiny", "/etc", "x" * 201, "tiny/teacher", "openai/clip", "\ud800"],
    "num_epochs": [-1, 10_001, 1.5, "1", [], {}, True, float("nan"), 10**30, float("inf")],
    "learning_rate": [0, -1, "1", [], {}, True, float("nan"), float("inf"), 11, 10**400],
    "batch_size": [0, -1, 65_537, 1.5, "1", [], {}, True, float("nan"), 10**30],
    "on_damaged": [None, 1, "", "mend", [], {}, True, "STOP", 1.5, "\ud800"],
    "preview_graft": [None, 1, [], "no", "tiny/teacher", "/etc", "x" * 201, "flatland", True, "\ud800"],
    "preview_steps": [0, -1, 1.5, "1", None, [], {}, True, float("nan"), 10**30],
    "prompts": [None, 1, "a", {}, [1], [None], ["a"] * 5, ["x" * 4001], ["\ud800"], True],
}
CHECK = {"data": ""}
ROUTES = {
    "/v1/trainings": (TRAINING, BAD_TRAINING),
    "/v1/checks": (CHECK, {"data": BAD_TRAINING["data"]}),
    "/v1/images/generations": (IMAGES, BAD_IMAGES),
    "/v1/embeddings": (EMBEDDINGS, BAD_EMBEDDINGS),
    "/v1/prompts": (PROMPT, BAD_PROMPT),
    "/v1/search": (SEARCH, BAD_SEARCH),
}


@pytest.mark.parametrize(("path", "field"), [(path, field) for path in ROUTES for field in ROUTES[path][1]])
def test_bad_values_of_other_routes_are_refused_in_a_sentence(shared_client, path, field):
    good, bad = ROUTES[path]
    assert len(bad[field]) == 10
    for value in bad[field]:
        body = json.dumps(good | {field: value}).encode()
        answer = shared_client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 404, 422), (field, str(value)[:80], answer.text)
        message = refused(answer, answer.status_code)
        assert len(message) > 10
        assert not PYTHON.search(message), message
    assert shared_client.get("/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 151}, "num_inference_steps: Input should be less than or equal to 150; got 151"),
        ({"width": 1032}, "width: Input should be less than or equal to 1024; got 1032"),
        (
            {"axes": [{"name": "steps", "values": [2, 151]}]},
            "setting 'num_inference_steps': input should be less than or equal to 150; got 151",
        ),
        ({"prompt2": "x" * 99}, f"prompt2: Unknown field; got '{'x' * 12}...{'x' * 13}'"),
    ],
)
def test_a_refusal_names_the_value_and_the_bound_that_holds(shared_client, values, message):
    assert refused(shared_client.post("/v1/jobs", json=JOB | values), 422) == message


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "images/generations",
            {"prompt": "a", "size": "64"},
            "size: expected WIDTHxHEIGHT in pixels",
        ),
        (
            "images/generations",
            {"prompt": "a", "size": "64X64"},
            "size: expected WIDTHxHEIGHT in pixels",
        ),
        (
            "images/generations",
            {"prompt": "a", "loras": ["x"]},
            "loras.0: Input should be a table of keys",
        ),
        ("embeddings", {"input": {"image": 1}}, "input: expected a text, or an image as {"),
        ("jobs", {"prompt": "a", "stream": 1}, "stream: Unknown field; got 1"),
        ("images/generations", {"prompt": "a", "stream": 1}, "stream: Input should be true or false; got 1"),
        (
            "jobs",
            {"prompt": "a", "models": ["a"] * 9},
            "models: List should have at most 8 items, not 9; got",
        ),
        ("jobs", {"prompt": "a", "init_image": "me.png"}, "init_image: expected the id of an uploaded image"),
        ("trainings", {"name": "a b", "kind": "bridge"}, "name: expected 1 to 64 letters without accents, "),
        ("embeddings", {"input": ""}, "input: a text is empty; send texts of"),
        ("embeddings", {"input": ["a", ""]}, "input: a text is empty; send texts of"),
        ("embeddings", {"input": []}, "input: expected a text, or an image as {"),
        ("embeddings", {"input": ["a"] * 3000}, "input: expected a text, or an image as {"),
        ("embeddings", {"input": [None]}, "input: expected a text, or an image as {"),
    ],
)
def test_a_refusal_names_no_type_or_pattern(shared_client, path, body, message):
    assert refused(shared_client.post(f"/v1/{path}", json=body), 422).startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes"),
        (b"null", "body: Input should be a table of keys and values"),
        (DEEP, "the body is not JSON as read here: it is nested too deep"),
        (b'{"prompt": "\xe9"}', "the body is not JSON as read here: it is not UTF-8 text (byte 12)"),
        (
            b'{"seed": 1%s}' % (b"0" * 5000),
            "the body is not JSON as read here: a number has over 4,300 digits",
        ),
    ],
)
def test_what_is_wrong_with_a_whole_body_is_said(shared_client, body, message):
    answer = shared_client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert refused(answer, 422) == message


DIGITS = "expected 16 digits of 0-9 and a-f; got"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("jobs/dog", f"job_id: {DIGITS} 'dog'"),
        ("images/dog.png", f"image_id: {DIGITS} 'dog'"),
        ("images/0123456789abcdef.gif", "extension: Input should be 'png', 'jpeg' or 'webp'; got 'gif'"),
        ("uploads/a.png", "upload_id: expected the id of an uploaded image, 64 digits of 0-9 and a-f; "
         "got 'a'"),
        ("trainings/a b", "name: expected 1 to 64 letters without accents, digits, dots, dashes and "
         "underscores, first a letter or a digit; got 'a b'"),
        ("jobs?limit=many", "limit: Input should be a valid integer; got 'many'"),
    ],
)  # fmt: skip
def test_a_bad_name_in_an_address_is_refused_in_words(shared_client, path, message):
    assert refused(shared_client.get(f"/v1/{path}"), 422) == message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("jobs/0123456789abcdef", "there is no job '0123456789abcdef'"),
        ("images/0123456789abcdef/preview", "there is no preview '0123456789abcdef'"),
        ("models/no", "there is no model 'no'; known are flatland/teacher, tiny/teacher, tiny/before"),
        ("runs/no", "there is no run 'no'"),
        ("runs/no/report", "there is no run 'no' with a report"),
        ("search/no", "there is no run 'no' with a CLIP before and after fine-tuning"),
        ("search/no/0", "there is no image 'no/0'"),
        ("trainings/no", "there is no training 'no'"),
        ("checks", "there is no check 'the data folder itself' yet"),
        ("checks/sheet?data=no", "there is no data set 'no' in the studio's data folder"),
        (f"uploads/{'0' * 64}.png", "there is no uploaded image 0000000000; upload it again"),
        ("dogs", "Not Found: GET /v1/dogs"),
    ],
)
def test_what_is_asked_for_and_is_not_there_is_named(shared_client, path, message):
    assert refused(shared_client.get(f"/v1/{path}"), 404).startswith(message)


def test_an_address_that_takes_no_such_request_is_named(shared_client):
    assert refused(shared_client.put("/v1/jobs", json={}), 405) == "Method Not Allowed: PUT /v1/jobs"


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:20]))
def test_bodies_that_are_no_request_are_refused(shared_client, body):
    answer = shared_client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert shared_client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("settings", "axes"),
    [
        ({"scheduler": "lcm", "steps": 51}, []),
        ({"scheduler": "ddim", "steps": 1000}, []),
        ({"steps": 0}, []),
        ({"guidance_scale": 1e308}, []),
        ({}, [{"name": "guidance_scale", "values": [3, 1e308]}]),
        ({"scheduler": "lcm"}, [{"name": "steps", "values": [4, 51]}]),
        ({}, [{"name": "steps", "values": [0]}]),
    ],
)
def test_impossible_settings_are_refused_before_they_wait(shared_client, settings, axes):
    for path in ("/v1/jobs", "/v1/estimates"):
        refused(shared_client.post(path, json={"prompt": "A dog", **settings, "axes": axes}), 422)
    if not axes:
        refused(shared_client.post("/v1/images/generations", json={"prompt": "A dog", **settings}), 422)
    assert shared_client.get("/v1/jobs").json() == {"jobs": []}
