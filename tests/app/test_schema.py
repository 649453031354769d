"""Requests made up from the API's own description: every answer is a described one, never a 5xx."""

import pytest
from hypothesis import HealthCheck, settings

from clipgraft.app.http_api import build_app
from clipgraft.app.limits import Limits
from clipgraft.app.service import Service

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def schema(runs_dir, tmp_path_factory):
    limits = Limits(max_pixel_steps=64 * 64 * 40, max_waiting_pictures=20)
    service = Service(runs_dir, tmp_path_factory.mktemp("home"), device="cpu", limits=limits)
    # It starts and stops the application by itself.
    yield schemathesis.openapi.from_asgi("/openapi.json", build_app(service))


api = schemathesis.pytest.from_fixture("schema")


@api.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_server(case):
    case.call_and_validate(
        headers={"Host": "localhost"},
        checks=[schemathesis.checks.not_a_server_error, schemathesis.checks.status_code_conformance],
    )
