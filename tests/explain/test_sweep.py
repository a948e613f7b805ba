"""One unit after the other: what callers see while the units are switched."""

import pytest
import torch
from torch import nn

from plexus.errors import SiteError
from plexus.explain import sweep, unit_effects
from plexus.units import Site

H = Site("1", "b u")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)).train()


def test_the_body_of_the_loop_runs_as_if_there_were_no_sweep(net):
    seen = []
    for _, output in sweep(net, torch.ones(2, 3), H, [(0, 0.0), (1, 0.0)], rows=2):
        seen.append((torch.is_grad_enabled(), net.training, net[2].training, output.requires_grad))
    assert seen == [(True, True, True, False)] * 2
    left = sweep(net, torch.ones(2, 3), H, [(0, 0.0), (1, 0.0)], rows=2)
    next(left)
    assert torch.is_grad_enabled()
    assert net.training


def test_batches_may_come_from_an_iterator(net):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))

    def outcome(output, batch):
        return output[:, 0]

    whole = unit_effects(net, [x], H, outcome)[H]
    torch.testing.assert_close(unit_effects(net, iter(x.split(2)), H, outcome)[H], whole)


def test_rows_that_are_no_samples_are_refused_with_a_mend(net):
    with pytest.raises(SiteError, match=r"no axis of samples(.|\n)*to mend"):
        list(sweep(net, torch.ones(2, 3), Site("1", "t u"), [(0, 0.0)]))
