"""Runs reservoirpy in the peers' environment: one request a line in, a JSON line out."""

from __future__ import annotations

import json
import sys

import numpy as np
import reservoirpy
from _timing import once
from reservoirpy.nodes import Reservoir, Ridge
from scipy import sparse


def main(path: str) -> None:
    problem = np.load(path)
    u, y, washout = problem["u"], problem["y"], int(problem["washout"])

    def reservoir(weight):
        return Reservoir(
            W=weight, Win=problem["Win"], bias=problem["bias"], lr=float(problem["leak"]), activation="tanh"
        )

    dense, thin = problem["W"], sparse.csr_array(problem["W"])
    states = reservoir(dense).run(u)
    work = {
        "reservoir dense": lambda: reservoir(dense).run(u),
        "reservoir sparse": lambda: reservoir(thin).run(u),
        "ridge": lambda: Ridge(ridge=float(problem["penalty"])).fit(states[washout:], y[washout:]),
    }
    for line in sys.stdin:
        what, _, target = line.strip().partition("\t")
        if what == "predict":
            readout = Ridge(ridge=float(problem["penalty"])).fit(states[washout:], y[washout:])
            np.save(target, readout.run(states[washout:]))
            answer = {"version": reservoirpy.__version__}
        else:
            answer = {"ms": once(work[what])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
