"""Downloads a model of the hub into this machine's cache: `python -m cluster.service.offload.fetch_child ID BYTES`.

At least so many bytes stay free. Lines of JSON come out: how far it is, and in the end `{"error": ...}` if there is
something to mend. It leads its own process group, and ends with its standard input, so it never outlives the service.
Whole files stay: the next one goes on with the others. The model's config is looked at before its weights come; no
code of the model is run.
"""

import json
import os
import signal
import sys
import threading

from mint.core.errors import MintError
from mint.core.log import configure_logging
from mint.core.progress import Progress
from mint.model.config import read_config
from mint.model.hub_cache import cached, parse_id
from mint.model.hub_download import fetch


def main() -> None:
    """Fetch the model that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    configure_logging(verbose=True)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    id, reserve_bytes = parse_id(sys.argv[1]), int(sys.argv[2])
    assert id, "the service asks for ids alone"

    def tell(step: Progress) -> None:
        print(json.dumps({"done": step.done, "total": step.total}), file=answers)

    try:
        if not cached(id):
            fetch(id, tell, check=read_config, reserve_bytes=reserve_bytes)
    except MintError as error:
        print(json.dumps({"error": str(error)}), file=answers)
    except OSError as error:  # a disk that others filled, a cache that may not be written
        print(json.dumps({"error": f"{error.filename or id}: {error.strerror or error}"}), file=answers)


def _end_with_the_service() -> None:
    os.read(0, 1)  # unbuffered: a thread that reads `sys.stdin` would be in the way of a normal end
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
