"""Downloads a model of the hub into this machine's cache, in a child process of the service.

Its arguments are the id, and the bytes of the disk that stay free. It answers in lines of JSON: the progress, and in
the end `{"error": ...}` for an error that a user can fix. It ends with its standard input, so it never outlives the
service. Whole files stay, and the next fetch continues with the others. The model's config is checked before its
weights come; no code of the model is run.
"""

import sys

from mint.core.errors import MintError
from mint.core.log import configure_logging
from mint.core.progress import Progress
from mint.model.config import check_config
from mint.model.hub_cache import cached, parse_id
from mint.model.hub_download import fetch
from mint.run.child import end_with_parent, open_answers, send


def main() -> None:
    """Fetch the model that the command line names."""
    end_with_parent()
    answers = open_answers()
    configure_logging(level="debug")
    id, reserve_bytes = parse_id(sys.argv[1]), int(sys.argv[2])
    assert id, "the service asks for ids alone"

    def report(step: Progress) -> None:
        send(answers, {"done": step.done, "total": step.total})

    try:
        if not cached(id):
            fetch(id, report, check=check_config, reserve_bytes=reserve_bytes)
    except MintError as error:
        send(answers, {"error": str(error)})
    except OSError as error:  # a disk that others filled, a cache that may not be written
        send(answers, {"error": f"{error.filename or id}: {error.strerror or error}"})
