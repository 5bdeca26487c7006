"""Requests that a program makes up from the schema: none is answered by a failure of the server."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from pusa.serving.app import make_app
from pusa.serving.served_model import ServedModel
from pusa.serving.server import Server, ServerOptions

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_no_request_breaks_the_server(tmp_path: Path) -> None:
    server = Server(ServerOptions(ServedModel("tiny", "tiny"), tmp_path, workers=0, most_waiting=10**6))
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(server)).exclude(path_regex="events|sync")
    tried = []

    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=15,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def answers(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS, headers={"host": "127.0.0.1"})

        answers()
        tried.append(operation.label)
    assert {"POST /v1/videos", "GET /v1/videos/{id}", "POST /v1/videos/check", "DELETE /v1/videos/{id}"} <= set(tried)
