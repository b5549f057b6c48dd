"""The served description, taken at its word: schemathesis sends what it allows, and what not."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from serving import serve

schemathesis = pytest.importorskip("schemathesis")
SHORT = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2, "n": 1}


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.long
def test_the_server_never_fails(tiny, mode):
    """By hand, for many more: FADER_FUZZ_OPENAPI=1000."""
    wanted, seen = schemathesis.GenerationMode[mode], set()
    with serve(tiny.backend) as served:
        api = schemathesis.openapi.from_dict(served.http.get("/openapi.json").json())
        for found in api.get_all_operations():
            operation = found.ok()
            if wanted.name == "NEGATIVE" and not operation.body:
                continue

            @given(case=operation.as_strategy(generation_mode=wanted))
            @settings(
                max_examples=int(os.environ.get("FADER_FUZZ_OPENAPI", 5)),
                deadline=None,
                derandomize=True,
                suppress_health_check=[*HealthCheck],
            )
            def send(case):
                if isinstance(case.body, dict):  # so that answers are short
                    case.body.update({key: v for key, v in SHORT.items() if key in case.body})
                answer = case.call(base_url=served.url)
                assert answer.status_code < 500, answer.text
                if answer.status_code >= 400:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
                seen.add(case.path)

            send()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses"} <= seen
