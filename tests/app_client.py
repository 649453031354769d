"""Asking a studio over HTTP: jobs to their end, refusals, files to send."""

import base64
import io
import json
import time

from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

TOKEN = "sk-" + "x" * 37
JOB = {"prompt": "A dog runs on the beach", "steps": 3, "seed": 5}


def ended(client: TestClient, job_id: str, seconds: float = 30.0) -> dict:
    """Wait until a job has ended."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        job = client.get(f"/v1/jobs/{job_id}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError(f"job is still {job['state']}: {json.dumps(job)}")


def generate(client: TestClient, **values) -> dict:
    """Ask for a job and wait until it has ended."""
    answer = client.post("/v1/jobs", json=JOB | values)
    assert answer.status_code == 202, answer.text
    return ended(client, answer.json()["id"])


def refused(answer, status: int) -> str:
    """Return the message of an error, which has OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]["message"]


def png_bytes(size: tuple[int, int] = (40, 30), **texts: str) -> bytes:
    """Return a red PNG with texts."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def base64_of(content: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(content).decode()
