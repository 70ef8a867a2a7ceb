"""The API against its own description: requests made from the schema, good and bad, and every answer as described."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from cluster.service.http.server import create_app
from cluster.service.settings import Settings

EXAMPLES = 12
HOST = "testserver"  # the name that schemathesis gives an application


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Iterator[Any]:
    """The API, asked by somebody who may all."""
    app = create_app(
        Settings(tmp_path_factory.mktemp("served"), roots=(llama.parent,), slots=0, names=(HOST,),
                 requests_per_second=1_000_000.0)
    )  # fmt: skip
    token = app.state.service.tokens.create("root", ("admin",))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    schema.config.update(headers={"Authorization": f"Bearer {token}"})
    yield schema
    app.state.service.planner.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_is_described(described: Any, mode: GenerationMode) -> None:
    failed = []
    for result in described.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
        )  # fmt: skip
        def check(case: Any) -> None:
            case.call_and_validate()

        try:
            check()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing can be wrong with a request without parameters
        except Exception as error:
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} operations", failed)
