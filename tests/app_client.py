"""Waiting for a studio's jobs over HTTP."""

import json
import time

from starlette.testclient import TestClient


def ended(client: TestClient, job_id: str, seconds: float = 30.0) -> dict:
    """Wait until a job has ended."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        job = client.get(f"/v1/jobs/{job_id}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError(f"job is still {job['state']}: {json.dumps(job)}")
