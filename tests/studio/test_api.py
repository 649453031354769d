"""The HTTP API: jobs, events, images, runs, search; every route described."""

import base64
import getpass
import hashlib
import io
import json
import re
import shutil
import socket

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app_client import JOB, generate, refused
from clipgraft.studio.api import build_app


@pytest.mark.integration
def test_a_job_is_generated_and_its_images_are_found_by_id(client):
    job = generate(client, num_images=3)
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


def test_compare_uses_the_same_seed_with_every_model(client):
    job = generate(client, models=["tiny/teacher", "tiny/before", "tiny/after"])
    assert job["kind"] == "compare"
    assert [image["model"] for image in job["images"]] == ["tiny/teacher", "tiny/before", "tiny/after"]
    assert {image["settings"]["seed"] for image in job["images"]} == {5}


def test_a_grid_is_counted_before_it_is_generated(client):
    axes = [{"name": "seed", "values": [1, 2]}, {"name": "guidance_scale", "values": [1, 2.5, 4]}]
    assert client.post("/v1/estimates", json=JOB | {"axes": axes}).json() == {
        "num_images": 6,
        "num_steps": 18,
        "images_before": 0,
        "training": "",
    }
    job = generate(client, axes=axes)
    cells = [(p["settings"]["seed"], p["settings"]["guidance_scale"]) for p in job["images"]]
    assert cells == [(1, 1), (1, 2.5), (1, 4), (2, 1), (2, 2.5), (2, 4)]


@pytest.mark.parametrize("seed", [None, -1, "random"])
def test_without_a_seed_a_random_one_is_used_and_told(client, seed):
    seeds = {generate(client, seed=seed, steps=1)["images"][0]["settings"]["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert all(0 <= each < 2**32 for each in seeds)


@pytest.mark.integration
def test_events_tell_each_change_and_end_with_the_job(client):
    job_id = client.post("/v1/jobs", json=JOB | {"steps": 150, "num_images": 8}).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    steps = [job["step"] for job in told]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert told[-1]["state"] == "done"


@pytest.mark.integration
def test_settings_come_back_from_a_downloaded_image(client):
    job = generate(client, negative_prompt="a cat", prompt="Ein Hund läuft 犬 🐕", seed=2**64 - 1, width=72)
    image = job["images"][0]
    headers = {"content-type": "image/png"}
    for kind in ("png", "jpeg", "webp"):
        content = client.get(f"/v1/images/{image['id']}.{kind}").content
        answer = client.post(
            "/v1/images/settings", content=content, headers={"content-type": f"image/{kind}"}
        )
        settings = answer.json()
        assert (settings["model"], settings["notes"]) == ("tiny/after", [])
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


def test_settings_of_another_tool_come_with_what_was_not_read(client):
    exif = Image.Exif()
    text = "a (red:1.2) boat\nSteps: 9, Sampler: Euler, CFG scale: 6, Seed: 3, Size: 64x72, Model: dreamy"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    file = io.BytesIO()
    Image.new("RGB", (64, 72)).save(file, "JPEG", exif=exif)
    headers = {"content-type": "image/jpeg"}
    settings = client.post("/v1/images/settings", content=file.getvalue(), headers=headers).json()
    assert settings == {
        **{"prompt": "a (red:1.2) boat", "negative_prompt": "", "seed": 3, "num_inference_steps": 9},
        **{"guidance_scale": 6, "scheduler": "euler", "width": 64, "height": 72, "model": ""},
        **{"prompt_syntax": "weighted", "long_prompts": "chunk"},
        "notes": ["not read: model dreamy"],
    }


def test_an_image_tells_no_path_user_or_host(client, runs_dir):
    image = generate(client)["images"][0]
    content = client.get(f"/v1/images/{image['id']}.png").content
    texts = str(Image.open(io.BytesIO(content)).text)
    assert "A dog runs on the beach" in texts
    for secret in (str(runs_dir), "/home", "/root", "/tmp", getpass.getuser() + "@", socket.gethostname()):
        assert secret not in texts


def test_history_is_searched_and_deleted_with_its_files(client, service):
    job = generate(client, prompt="A red ball", num_images=2)
    generate(client, prompt="A black cat")
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
    with service.cache.lock:  # nothing is generated meanwhile
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
    assert client.get("/v1/search/tiny").json() == {"done": None, "total": None}
    assert "there is no run" in refused(client.post("/v1/search", json={"run": "no", "caption": "x"}), 404)


@pytest.fixture
def own_run(own_runs, runs_dir):
    """The folder of a run, `own`, that a test may damage."""
    return shutil.copytree(runs_dir / "tiny", own_runs / "own")


def test_errors_of_models_and_data_name_no_folder(client, own_run, tmp_path):
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


def test_a_studio_without_its_worker_is_unhealthy(service):
    client = TestClient(build_app(service), base_url="http://localhost")
    assert (client.get("/health").status_code, client.get("/health").json()) == (
        503,
        {"status": "not generating", "reason": "the generating thread has ended; restart the studio"},
    )


def test_a_running_studio_is_healthy(client):
    assert client.get("/health").json() == {"status": "ok"}


def test_every_route_is_described_with_an_example(client):
    schema = client.get("/openapi.json").json()
    assert len(schema["paths"]) >= 17
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            answer = next(answer for code, answer in route["responses"].items() if code.startswith("2"))
            assert any("example" in kind for kind in answer["content"].values()), (method, path)
            assert route.get("description"), (method, path)


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


def test_what_a_request_leaves_out_is_the_models_own(client):
    answer = client.post("/v1/jobs", json={"prompt": "A dog", "models": ["tiny/after", "flatland/teacher"]})
    found = [(one["settings"]["guidance_scale"], one["steps"]) for one in answer.json()["images"]]
    assert found == [(2.0, 2), (3.0, 25)]
    rows = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
    assert (rows["tiny/after"]["guidance_scale"], rows["tiny/after"]["num_inference_steps"]) == (2.0, 2)
