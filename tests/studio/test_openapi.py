"""Requests made up from the API's own description: every answer is a described one, never a 5xx."""

import pytest
from hypothesis import HealthCheck, given, settings

import tiny
from clipgraft.studio.api import build_app
from clipgraft.studio.schemas import Limits
from clipgraft.studio.security import Access
from clipgraft.studio.service import Service

schemathesis = pytest.importorskip("schemathesis")
status_code_conformance = pytest.importorskip("schemathesis.specs.openapi.checks").status_code_conformance
pytestmark = pytest.mark.slow
EXAMPLES = 20
"""Of each route."""


def test_no_request_breaks_the_server(runs_dir, tmp_path):
    limits = Limits(max_pixel_steps=64 * 64 * 40, max_waiting_images=20)
    tiny.write_flickr8k(tmp_path / "data" / "photos")
    service = Service(runs_dir, tmp_path / "home", device="cpu", limits=limits, data_dir=tmp_path / "data")
    service.trainings.runs_dir = tmp_path / "runs"
    app = build_app(service, Access(hosts=frozenset({"testserver"})))
    # It starts the application by itself.
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 30
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        def answers_as_described(case):
            described = [
                schemathesis.checks.not_a_server_error,
                status_code_conformance,
            ]
            case.call_and_validate(checks=described)

        answers_as_described()
    service.begin_to_stop()
    service.trainings.join(timeout=60)
