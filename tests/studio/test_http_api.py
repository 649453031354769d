"""The HTTP API: jobs, events, images, runs, search; every answer in one shape, every route described."""

import base64
import getpass
import hashlib
import io
import json
import re
import shutil
import socket
import threading
import time
import zlib

import pytest
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from app_client import ended
from clipgraft.studio.api import build_app

JOB = {"prompt": "A dog runs on the beach", "steps": 3, "seed": 5}


def draw(client, **values):
    answer = client.post("/v1/jobs", json=JOB | values)
    assert answer.status_code == 202, answer.text
    return ended(client, answer.json()["id"])


def refused(answer, status: int) -> str:
    """The message of an error, which has OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]["message"]


def png_bytes(size=(40, 30), **texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_a_job_is_drawn_and_its_images_are_found_by_id(client):
    job = draw(client, num_images=3)
    assert (job["state"], job["kind"], job["step"], job["steps"]) == ("done", "generate", 9, 9)
    assert [image["settings"]["seed"] for image in job["images"]] == [5, 6, 7]
    assert {image["model"] for image in job["images"]} == {"tiny/after"}
    assert {image["settings"]["guidance_scale"] for image in job["images"]} == {2.0}
    image = job["images"][0]
    content = client.get(f"/v1/images/{image['id']}.png")
    assert content.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(content.content)).size == (64, 64)
    assert client.get(f"/v1/images/{image['id']}").json()["settings"] == image["settings"]
    assert client.get(f"/v1/pictures/{image['id']}.png").content == content.content  # its old address
    for extension, name in (("jpeg", "JPEG"), ("webp", "WEBP")):
        content = client.get(f"/v1/images/{image['id']}.{extension}").content
        assert Image.open(io.BytesIO(content)).format == name


def test_compare_draws_the_same_seed_with_every_model(client):
    job = draw(client, models=["tiny/teacher", "tiny/before", "tiny/after"])
    assert job["kind"] == "compare"
    assert [image["model"] for image in job["images"]] == ["tiny/teacher", "tiny/before", "tiny/after"]
    assert {image["settings"]["seed"] for image in job["images"]} == {5}


def test_a_grid_is_counted_before_it_is_drawn(client):
    axes = [{"name": "seed", "values": [1, 2]}, {"name": "guidance_scale", "values": [1, 2.5, 4]}]
    assert client.post("/v1/estimates", json=JOB | {"axes": axes}).json() == {
        "num_images": 6,
        "num_steps": 18,
        "images_before": 0,
    }
    job = draw(client, axes=axes)
    cells = [(p["settings"]["seed"], p["settings"]["guidance_scale"]) for p in job["images"]]
    assert cells == [(1, 1), (1, 2.5), (1, 4), (2, 1), (2, 2.5), (2, 4)]


def test_without_a_seed_one_is_drawn_by_lot_and_told(client):
    seeds = {draw(client, seed=None, steps=1)["images"][0]["settings"]["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_events_tell_each_change_and_end_with_the_job(client):
    job_id = client.post("/v1/jobs", json=JOB | {"steps": 100}).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    steps = [job["step"] for job in told]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert told[-1]["state"] == "done"


def test_settings_come_back_from_a_downloaded_image(client):
    job = draw(client, negative_prompt="a cat", prompt="Ein Hund läuft 犬 🐕", seed=2**64 - 1, width=72)
    image = job["images"][0]
    headers = {"content-type": "image/png"}
    content = client.get(f"/v1/images/{image['id']}.png").content
    settings = client.post("/v1/images/settings", content=content, headers=headers).json()
    assert settings["model"] == "tiny/after"
    assert {name: settings[name] for name in ("prompt", "negative_prompt", "seed")} == {
        "prompt": "Ein Hund läuft 犬 🐕",
        "negative_prompt": "a cat",
        "seed": 2**64 - 1,
    }
    assert (settings["width"], settings["height"]) == (72, 64)
    bare = client.get(f"/v1/images/{image['id']}.png?metadata=false").content
    assert "does not hold its settings" in refused(
        client.post("/v1/images/settings", content=bare, headers=headers), 422
    )


def test_an_image_tells_no_path_user_or_host(client, runs_dir):
    image = draw(client)["images"][0]
    content = client.get(f"/v1/images/{image['id']}.png").content
    texts = str(Image.open(io.BytesIO(content)).text)
    assert "A dog runs on the beach" in texts
    for secret in (str(runs_dir), "/home", "/root", "/tmp", getpass.getuser() + "@", socket.gethostname()):
        assert secret not in texts


def test_history_is_searched_and_images_are_deleted_with_their_files(client, service):
    job = draw(client, prompt="A red ball", num_images=2)
    draw(client, prompt="A black cat")
    found = client.get("/v1/images", params={"search": "ball red"}).json()["images"]
    assert {image["id"] for image in found} == {image["id"] for image in job["images"]}
    gone = found[0]["id"]
    assert client.delete(f"/v1/images/{gone}").json() == {"deleted": True}
    assert "there is no image" in refused(client.get(f"/v1/images/{gone}.png"), 404)
    assert not service.files.is_there(gone)
    left = found[1]["id"]
    service.files.path(left).unlink()
    for extension in ("png", "webp"):
        message = refused(client.get(f"/v1/images/{left}.{extension}"), 404)
        assert message == f"the file of image {left} is gone"


def test_a_cancelled_job_says_so(client):
    job_id = client.post("/v1/jobs", json=JOB | {"steps": 150, "num_images": 16}).json()["id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel", json={}).json()["state"] == "cancelled"
    assert client.get("/v1/jobs").json()["jobs"][0]["state"] == "cancelled"


def test_a_full_queue_answers_429_with_the_time_to_wait(client, service):
    service.queue.max_waiting = 4
    with service.device_lock:  # nothing is drawn meanwhile
        client.post("/v1/jobs", json=JOB | {"num_images": 4})
        answers = [client.post("/v1/jobs", json=JOB | {"num_images": 4}) for _ in range(3)]
    assert "do not fit" in refused(answers[-1], 429)
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 120


def test_an_unknown_model_is_named_with_those_that_there_are(client):
    message = refused(client.post("/v1/jobs", json=JOB | {"models": ["../../etc"]}), 404)
    assert message.startswith("there is no model '../../etc'; known are flatland/teacher, tiny/teacher")


def test_runs_are_shown_with_their_loss_and_their_report(client):
    told = client.get("/v1/runs").json()
    assert told["searchable"] == ["tiny"]
    assert [(run["name"], run["state"], run["has_report"]) for run in told["runs"]] == [
        ("tiny", "finished", True)
    ]
    run = client.get("/v1/runs/tiny").json()
    assert run["steps"] == list(range(1, len(run["losses"]) + 1))
    assert [epoch for epoch, _, _ in run["epochs"]] == [1, 2]
    report = client.get("/v1/runs/tiny/report")
    policy = report.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith("sandbox allow-scripts")
    [script] = re.findall("<script>(.*?)</script>", report.text, re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall("script-src ([^;]*);", policy) == [f"'sha256-{own}'"]
    for name in ("nope", "..", "%2e%2e", "tiny%2f..%2f..", "C:%5CWindows"):
        assert client.get(f"/v1/runs/{name}").status_code == 404


def test_search_ranks_the_test_images_by_both_clips(client, service):
    found = client.post("/v1/search", json={"run": "tiny", "caption": "A red ball", "limit": 3}).json()
    for side in ("before", "after"):
        scores = [row["score"] for row in found[side]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 3
    index = service.embedder.index("tiny")
    text, _ = service.embedder.embed("tiny/after", ["A red ball"])
    best = (index.embeds["after"] @ text[0]).argmax().item()
    assert found["after"][0]["image"] == best
    image = client.get(f"/v1/search/tiny/{best}")
    assert Image.open(io.BytesIO(image.content)).format == "JPEG"
    assert client.get("/v1/search/tiny/999").status_code == 404
    assert "there is no run" in refused(client.post("/v1/search", json={"run": "no", "caption": "x"}), 404)


@pytest.fixture
def own_run(own_runs, runs_dir):
    """The folder of a run, `own`, that a test may damage."""
    return shutil.copytree(runs_dir / "tiny", own_runs / "own")


def test_a_damaged_clip_and_data_that_are_gone_are_told_without_folders(client, own_run, tmp_path):
    weights = own_run / "finetune" / "clip" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    message = refused(client.post("/v1/embeddings", json={"model": "own/after", "input": "A dog"}), 409)
    assert "model.safetensors is damaged" in message
    assert str(tmp_path) not in message
    weights.write_bytes(whole)
    recipe = own_run / "recipe.toml"
    recipe.write_text(re.sub('source = ".*"', f'source = "{tmp_path}/gone"', recipe.read_text()))
    message = refused(client.post("/v1/search", json={"run": "own", "caption": "A dog"}), 404)
    assert "gone" in message
    assert str(tmp_path) not in message


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
        ("blocked", "", 400, "invalid_request_error", "the base's safety checker blocked the image"),
        ("failed_nan", "", 500, "server_error", "the image's values are no numbers"),
        ("failed_black", "", 500, "server_error", "the image is all black"),
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


def test_a_studio_without_anybody_who_draws_is_unhealthy(service):
    client = TestClient(build_app(service), base_url="http://localhost")
    assert (client.get("/health").status_code, client.get("/health").json()) == (
        503,
        {"status": "not generating", "reason": "the generating thread has ended; restart the studio"},
    )


def test_a_studio_that_draws_is_healthy(client):
    assert client.get("/health").json() == {"status": "ok"}


def test_every_route_is_described_with_an_example(client):
    schema = client.get("/openapi.json").json()
    assert len(schema["paths"]) >= 17
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            answer = next(answer for code, answer in route["responses"].items() if code.startswith("2"))
            assert any("example" in kind for kind in answer["content"].values()), (method, path)
            assert route.get("description"), (method, path)


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
    "two files in one": (lambda: png_bytes() + b"<script>alert(1)</script>", "something follows its end"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_by_every_route_that_takes_one(client, name):
    make, message = HOSTILE[name]
    content = make()
    upload = client.post("/v1/images/settings", content=content, headers={"content-type": "image/png"})
    assert message in refused(upload, 422)
    body = {"model": "flatland", "input": [{"image": base64_of(content)}]}
    assert message in refused(client.post("/v1/embeddings", json=body), 422)
    assert client.get("/health").status_code == 200


def test_a_record_nested_without_end_is_no_record(client):
    content = png_bytes(clipgraft="[" * 100_000)
    answer = client.post("/v1/images/settings", content=content, headers={"content-type": "image/png"})
    assert "does not hold its settings" in refused(answer, 422)


def test_pixels_of_a_request_are_bounded_together_before_any_is_decoded(service):
    service.limits = service.limits.model_copy(update={"max_request_pixels": 3000})
    damaged = png_bytes()[:-40] + png_bytes()[-12:]  # which decoding would say
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
    "seed": [-1, 2**64, 1.5, "1", True, [], {}, float("nan"), float("inf"), 10**400],
    "steps": [0, -1, 1001, 151, 2.5, "3", True, [], float("nan"), 10**30],
    "guidance_scale": [0, -1, 0.99, 101, "2", [], {}, float("nan"), float("inf"), True],
    "scheduler": [None, "", "nope", 1, [], {}, "DPM++", "x" * 1000, True, "dpm++\0"],
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
def test_ten_bad_values_of_each_field_are_refused_in_a_sentence(client, field):
    assert len(BAD[field]) == 10
    for value in BAD[field]:
        # Python's own writer lets NaN and half characters through, as a hostile client does.
        body = json.dumps(JOB | {field: value}).encode()
        answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 404, 422), (field, str(value)[:80], answer.text)
        assert len(refused(answer, answer.status_code)) > 10
    assert client.get("/v1/jobs").json() == {"jobs": []}


IMAGES = {"prompt": "A dog", "steps": 1}
BAD_IMAGES = {
    "prompt": [None, 1, True, [], {}, "", "x" * 4001, "\ud800", 1.5, ["a"]],
    "model": [1, True, [], {}, "no", "../x", "x" * 201, "flatland", "\ud800", 1.5],
    "n": [0, -1, 11, 1.5, "1", [], {}, True, 10**30, float("nan")],
    "size": ["", "63x64", "8x8", "64", "x", "1032x64", "9999x9999", 64, [], "64x64x64"],
    "response_format": ["", "png", 1, [], {}, True, "URL", "b64", "url ", 1.5],
    "output_format": ["", "gif", 1, [], {}, True, "PNG", "jpg", "svg", 1.5],
    "quality": ["", "hd", 1, [], {}, True, "high", "low", "AUTO", 1.5],
    "user": [1, True, [], {}, "x" * 65, 1.5, "\ud800", ["a"], {"a": 1}, 10**30],
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
    "user": BAD_IMAGES["user"],
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
ROUTES = {
    "/v1/images/generations": (IMAGES, BAD_IMAGES),
    "/v1/embeddings": (EMBEDDINGS, BAD_EMBEDDINGS),
    "/v1/prompts": (PROMPT, BAD_PROMPT),
    "/v1/search": (SEARCH, BAD_SEARCH),
}


@pytest.mark.parametrize(("path", "field"), [(path, field) for path in ROUTES for field in ROUTES[path][1]])
def test_ten_bad_values_of_each_field_of_the_other_routes_are_refused_in_a_sentence(client, path, field):
    good, bad = ROUTES[path]
    assert len(bad[field]) == 10
    for value in bad[field]:
        body = json.dumps(good | {field: value}).encode()
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 404, 422), (field, str(value)[:80], answer.text)
        assert len(refused(answer, answer.status_code)) > 10
    assert client.get("/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 151}, "steps: Input should be less than or equal to 150; got 151"),
        ({"width": 1032}, "width: Input should be less than or equal to 1024; got 1032"),
        ({"axes": [{"name": "steps", "values": [2, 151]}]}, "steps must be from 1 to 150; got 151"),
        ({"prompt2": "x" * 99}, f"prompt2: Extra inputs are not permitted; got '{'x' * 12}...{'x' * 13}'"),
    ],
)
def test_a_refusal_names_the_value_and_the_bound_that_holds(client, values, message):
    assert refused(client.post("/v1/jobs", json=JOB | values), 422) == message


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:20]))
def test_bodies_that_are_no_request_are_refused(client, body):
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert client.get("/health").status_code == 200


def test_ids_are_no_paths(client):
    for bad in (
        "..",
        "../../queue.sqlite",
        "%2e%2e%2fqueue",
        "a" * 17,
        "A" * 16,
        "C:\\x",
        "1f0c9a52e3b84d1g",
    ):
        assert client.get(f"/v1/images/{bad}").status_code in (404, 422)
        assert client.get(f"/v1/images/{bad}.png").status_code in (404, 422)
        if bad != "..":  # which a client turns into / by itself
            assert client.get(f"/page/{bad}").status_code == 404
    for bad in (
        "/page/../http_api.py",
        "/page/%2e%2e/server.py",
        "/page/index.html",
        "/etc/passwd",
        "//etc/passwd",
    ):
        assert client.get(bad).status_code == 404


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
def test_what_cannot_be_drawn_is_refused_before_it_waits(client, settings, axes):
    for path in ("/v1/jobs", "/v1/estimates"):
        refused(client.post(path, json={"prompt": "A dog", **settings, "axes": axes}), 422)
    if not axes:
        refused(client.post("/v1/images/generations", json={"prompt": "A dog", **settings}), 422)
    assert client.get("/v1/jobs").json() == {"jobs": []}


def test_what_a_request_leaves_out_is_the_models_own(client):
    answer = client.post("/v1/jobs", json={"prompt": "A dog", "models": ["tiny/after", "flatland/teacher"]})
    drawn = [(one["settings"]["guidance_scale"], one["steps"]) for one in answer.json()["images"]]
    assert drawn == [(2.0, 2), (3.0, 25)]
    rows = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
    assert (rows["tiny/after"]["guidance_scale"], rows["tiny/after"]["num_inference_steps"]) == (2.0, 2)
