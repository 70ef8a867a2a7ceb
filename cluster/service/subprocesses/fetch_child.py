"""Downloads a model of the hub, or converts a GGUF file, into a cache of this machine: a child process of the service.

Its arguments are the id or the absolute path, and the bytes of the disk that stay free. It answers in lines of JSON:
the progress, and in the end `{"error": ...}` for an error that a user can fix. It ends with its standard input, so it
never outlives the service. Whole files stay, and the next fetch continues with the others. The config of a model of the
hub is checked before its weights come; no code of a model is run.
"""

import sys
from pathlib import Path

from mint.core.errors import MintError
from mint.core.log import configure_logging
from mint.core.progress import Progress
from mint.model.config import check_config
from mint.model.gguf.convert import converted
from mint.model.gguf.files import gguf_files
from mint.model.hub_cache import cached, parse_id
from mint.model.hub_download import fetch
from mint.run.child import end_with_parent, open_answers, send


def main() -> None:
    """Fetch the model that the command line names."""
    end_with_parent()
    answers = open_answers()
    configure_logging(level="debug")
    source, reserve_bytes = sys.argv[1], int(sys.argv[2])

    def report(step: Progress) -> None:
        send(answers, {"done": step.done, "total": step.total})

    try:
        if files := gguf_files(Path(source)):
            converted(files, report, reserve_bytes=reserve_bytes)
            return
        id = parse_id(source)
        assert id, "the service asks for GGUF files and ids alone"
        if not cached(id):
            fetch(id, report, check=check_config, reserve_bytes=reserve_bytes)
    except MintError as error:
        send(answers, {"error": str(error)})
    except OSError as error:  # a disk that others filled, a cache that may not be written
        send(answers, {"error": f"{error.filename or source}: {error.strerror or error}"})
