"""Every part runs once, on torch's team as on our pool, from any thread and in a forked child."""

import os
import threading

import pytest
import torch

from plexus.kernels import _threads, lif
from plexus.kernels._threads import _run_on_pool, _team, run_parts


@pytest.fixture(params=["team", "pool"])
def run(request: pytest.FixtureRequest):
    if request.param == "team" and _team() is None:
        pytest.skip("torch does not run on OpenMP here")
    return run_parts if request.param == "team" else _run_on_pool


@pytest.mark.parametrize("count", [2, 3, 17])
def test_every_part_runs_once(run, count: int) -> None:
    done: list[int] = []
    run([lambda k=k: done.append(k) for k in range(count)])
    assert sorted(done) == list(range(count))


def test_what_a_part_raises_is_raised_and_the_next_call_works(run) -> None:
    with pytest.raises(ZeroDivisionError):
        run([lambda: 1, lambda: 1 // 0])
    test_every_part_runs_once(run, 2)


def test_two_parts_really_overlap(run) -> None:
    meet = threading.Barrier(2, timeout=20)
    run([meet.wait, meet.wait])


def test_callers_in_several_threads_do_not_meet() -> None:
    x = torch.rand(20, 64, 256)
    torch.set_num_threads(2)
    try:
        alone = lif(x, decay=0.9, backend="fused")[0]
        found: list[torch.Tensor] = []
        callers = [
            threading.Thread(target=lambda: found.append(lif(x, decay=0.9, backend="fused")[0])) for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(1)
    assert len(found) == 4
    assert all(torch.equal(alone, other) for other in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_leaves_the_team_alone() -> None:
    run_parts([lambda: None, lambda: None])
    child = os.fork()
    if child == 0:
        done: list[int] = []
        run_parts([lambda: done.append(1), lambda: done.append(2)])
        os._exit(0 if sorted(done) == [1, 2] and _threads._forked else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
