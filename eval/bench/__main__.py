"""One case of `prm bench`: `python -m prm.eval.bench JSON` prints the row of [kind, arguments] (`process.measure`)."""

import json
import sys

from prm import InputError
from prm.files import reason

from .peaks import measure_peaks
from .retrieval import measure_retrieval
from .segment import measure_segment
from .walk import measure_walk, measure_walk_memory

MEASURES = {
    "walk": measure_walk, "walk-memory": measure_walk_memory, "retrieval": measure_retrieval, "peaks": measure_peaks,
    "segment": measure_segment,
}  # fmt: skip

if __name__ == "__main__":
    kind, arguments = json.loads(sys.argv[1])
    try:
        print(json.dumps(MEASURES[kind](**arguments)))
    except (InputError, RuntimeError, NotImplementedError) as error:
        sys.exit(reason(error)[:300])
