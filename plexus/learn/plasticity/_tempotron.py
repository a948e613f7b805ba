"""The tempotron: a neuron that learns to spike at least once for one class of inputs and never for the others.

    V(t) = Σ_i w_i Σ_{t_i <= t} K(t - t_i),    K: what one input spike does to the potential, its peak scaled to 1
    on an error at a sample:   Δw_i = ±η Σ_{t_i <= t*} K(t* - t_i),     t* = argmax V from the first input spike on

+ where the neuron should have spiked and did not, - where it should not have and did. K is that of the neuron behind
an exponential synapse: for a leaky integrator the difference of two exponentials, V₀ (e^{-t/τ} - e^{-t/τ_s}); for a
linear meta neuron of the second order its damped, possibly resonant, response. The numbers of the neuron learn by the
same rule as the weights, by the gradient of ±(V(t*) - θ). A stochastic neuron spikes at least once with probability
1 - Π_t (1 - σ((V(t) - θ)/Δ)), of which its response to a training sample is a draw. The input gain cancels in K.

Source: Gütig & Sompolinsky 2006, eqs. 1-4, with momentum; numbers of the neuron after Rudnicka et al. 2025.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.learn._parameters import Parameters, as_array, classifier_tags
from plexus.nn import MetaNeuron, intrinsic_parameters
from plexus.units._draws import random_order, uniform

__all__ = ["Tempotron"]


class Tempotron(Parameters):
    """Tempotron in the manner of scikit-learn; inputs are spikes `[sample, channel, time]`; it learns where
    they lie.

    Two classes share one neuron, which spikes for the second of them; more have one neuron each, and the one that comes
    furthest above its threshold wins.

    Args:
        neuron: a `MetaNeuron` in the linear form with as many units as neurons are needed, copied before it learns;
            what it can learn it learns here too. None: a leaky integrator with tau_mem = 15 steps.
        tau_syn: time constant of the synapses in ms; None: a quarter of each neuron's.
        rate: η of the weights.
        intrinsic_rate: η of the neuron's own numbers.
        momentum: share of the last change that is made again.
        epochs: passes over the samples.
        batch: samples whose changes are averaged; 1 is the published rule.
        scale: standard deviation of the first weights, times the square root of the number of channels.
        generator: source of the first weights, the order of samples and the draws; None: a fresh one seeded with 0.

    Attributes:
        weight_: `[neuron, channel]`. neuron_: the learned neuron. classes_: the labels, sorted.
        errors_: share of wrong responses in each epoch, while learning.

    Raises:
        RangeError: inputs are not finite, fewer than two classes, or a setting that must be positive is not.
        ShapeError: inputs are not `[sample, channel, time]`, or the neuron has another number of units.
        UnsupportedError: the neuron is quadratic, so that it has no kernel.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> spikes = torch.zeros(40, 10, 50)                    # two groups of channels: apart, or together
        >>> spikes[:20, :5, 10], spikes[:20, 5:, 40], spikes[20:, :, 25] = 1, 1, 1
        >>> labels = ["apart"] * 20 + ["together"] * 20
        >>> Tempotron(generator=generator).fit(spikes, labels).score(spikes, labels)
        1.0
    """

    weight_: Tensor
    neuron_: MetaNeuron
    classes_: NDArray[Any]
    errors_: list[float]

    def __init__(
        self,
        neuron: MetaNeuron | None = None,
        *,
        tau_syn: float | None = None,
        rate: float = 0.005,
        intrinsic_rate: float = 0.005,
        momentum: float = 0.9,
        epochs: int = 30,
        batch: int = 10,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.neuron = neuron
        self.tau_syn = tau_syn
        self.rate = rate
        self.intrinsic_rate = intrinsic_rate
        self.momentum = momentum
        self.epochs = epochs
        self.batch = batch
        self.scale = scale
        self.generator = generator

    def __sklearn_tags__(self) -> Any:
        return classifier_tags()

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from spikes `[sample, channel, time]` and a label for each."""
        x = _spikes(X)
        if not (self.rate > 0 and self.intrinsic_rate >= 0 and self.batch >= 1 and 0 <= self.momentum < 1):
            raise RangeError(
                "a setting of the tempotron lies outside its range",
                given=self,
                expected="rate > 0, intrinsic_rate >= 0, batch >= 1, 0 <= momentum < 1",
            )
        labels = as_array(y)
        if labels.shape != (len(x),):
            raise ShapeError("labels do not match samples", given=labels.shape, expected=(len(x),))
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise RangeError("a classifier needs two classes", given=self.classes_.tolist())
        units = 1 if len(self.classes_) == 2 else len(self.classes_)
        self.neuron_ = self._neuron(units).to(x.device)
        place = torch.from_numpy(index).to(x.device)
        goal = (place == 1).unsqueeze(1) if units == 1 else nn.functional.one_hot(place, units).bool()
        generator = self.generator or torch.Generator().manual_seed(0)
        weight = torch.randn(units, x.shape[1], generator=generator, device=generator.device)
        self.weight_ = (weight * self.scale / x.shape[1] ** 0.5).to(x).requires_grad_()
        groups: list[dict[str, Any]] = [{"params": [self.weight_], "lr": self.rate}]
        own = list(intrinsic_parameters(self.neuron_))
        groups += [{"params": own, "lr": self.intrinsic_rate}] if own else []
        optimizer = torch.optim.SGD(groups, momentum=self.momentum)
        self.errors_ = []
        for _ in range(self.epochs):
            wrong = 0.0
            order = random_order(len(x), generator).to(x.device)
            for rows in order.split(self.batch):
                optimizer.zero_grad()
                loss, errors = self._loss(x[rows], goal[rows], generator)
                wrong += errors
                loss.backward()
                optimizer.step()
            self.errors_.append(wrong / goal.numel())
        self.weight_ = self.weight_.detach()
        return self

    def _neuron(self, units: int) -> MetaNeuron:
        neuron = copy.deepcopy(self.neuron) if self.neuron is not None else MetaNeuron(units, 15.0, order=1)
        if neuron.form != "linear":
            raise UnsupportedError(
                "a quadratic neuron has no kernel: what one input spike does depends on the others",
                mend='use form="linear"',
            )
        if neuron.units != (units,):
            raise ShapeError("the neuron has another number of units", given=neuron.units, expected=(units,))
        return neuron

    def _loss(self, x: Tensor, goal: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        """What the rule descends: ∓(V(t*) - θ) of the wrong responses, per sample; and how many they are."""
        above = self._above(x)
        # before its first input spike a sample has nothing to learn from, though V may be highest there
        begun = (x != 0).any(1, keepdim=True).cummax(-1).values
        peak = torch.where(begun, above, -torch.inf).max(-1).values.clamp(min=-1e9)
        if self.neuron_.stochastic:
            chance = self._chance(above.detach())
            fired = uniform(chance.shape, dtype=chance.dtype, device=chance.device, generator=generator) < chance
        else:
            fired = peak > 0
        wrong = fired != goal
        sign = torch.where(goal, -1.0, 1.0).to(peak.dtype)
        return (sign * peak * wrong).sum() / len(x), float(wrong.sum())

    def _above(self, x: Tensor) -> Tensor:
        """V - θ, `[sample, neuron, time]`."""
        steps = x.shape[-1]
        current = torch.einsum("ci,sit->sct", self.weight_, x)
        now = torch.arange(steps, device=x.device)
        lag = now.unsqueeze(1) - now  # [time, time of the input spike]
        kernel = self.kernel(steps).to(x.dtype)
        response = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0.0)
        potential = torch.einsum("cut,sct->scu", response, current)
        return potential - self.neuron_.threshold.to(x.dtype).expand(self.neuron_.units).unsqueeze(-1)

    def kernel(self, steps: int) -> Tensor:
        """K of each neuron for the first steps after an input spike, `[neuron, time]`, its peak 1."""
        neuron = self.neuron_
        columns = {"decay": neuron.decay, "gain": neuron.gain, "tau": neuron.tau_mem}
        if neuron.order == 2:
            columns |= {"a": neuron.recovery, "b": neuron.coupling}
        n = {name: number.expand(neuron.units) for name, number in columns.items()}
        tau_syn = n["tau"] / 4 if self.tau_syn is None else torch.full_like(n["tau"], self.tau_syn)
        fade = torch.exp(-neuron.dt / tau_syn)
        zero = torch.zeros_like(fade)
        a, b = n.get("a", zero), n.get("b", zero)
        # synapse, membrane and recovery, one step on without input
        power = torch.stack(
            [
                torch.stack([fade, zero, zero], -1),
                torch.stack([n["gain"] * fade, n["decay"], -torch.ones_like(fade)], -1),
                torch.stack([a * b * n["gain"] * fade, a * b * n["decay"], 1 - a - a * b], -1),
            ],
            -2,
        )
        states = torch.stack([torch.ones_like(fade), n["gain"], a * b * n["gain"]], -1).unsqueeze(-1)
        while states.shape[-1] < steps:  # twice as many steps each time
            states = torch.cat([states, power @ states], -1)
            power = power @ power
        response = states[:, 1, :steps]
        return response / response.max(-1, keepdim=True).values

    def _chance(self, above: Tensor) -> Tensor:
        """Probability of at least one spike, `[sample, neuron]`."""
        scaled = above / self.neuron_.temperature.detach().expand(self.neuron_.units).unsqueeze(-1)
        return -torch.expm1(-nn.functional.softplus(scaled).sum(-1))

    @torch.no_grad()
    def decision_function(self, X: Any) -> NDArray[Any]:
        """How far the potential comes above the threshold: `[sample]` for two classes, else `[sample, class]`.

        Of a stochastic neuron: the log-odds of at least one spike.
        """
        above = self._above(self._fitted(X))
        if self.neuron_.stochastic:
            found = torch.logit(self._chance(above), eps=1e-12)
        else:
            found = above.max(-1).values
        return np.asarray((found.squeeze(1) if len(self.classes_) == 2 else found).cpu())

    def predict(self, X: Any) -> NDArray[Any]:
        """The label of each sample; of a stochastic neuron the likeliest."""
        found = self.decision_function(X)
        return np.asarray(self.classes_[(found > 0).astype(int) if found.ndim == 1 else found.argmax(1)])

    def score(self, X: Any, y: Any) -> float:
        """Share of samples whose label is right."""
        return float((self.predict(X) == as_array(y)).mean())

    @torch.no_grad()
    def spikes(self, X: Any) -> Tensor:
        """What the learned neurons emit, resets included: `[sample, neuron, time]`; of a stochastic one a draw."""
        x = self._fitted(X)
        steps = x.shape[-1]
        neuron = self.neuron_
        tau_syn = neuron.tau_mem / 4 if self.tau_syn is None else torch.as_tensor(self.tau_syn)
        fade = torch.exp(-neuron.dt / tau_syn).expand(neuron.units).to(x.dtype)
        current = torch.einsum("ci,sit->tsc", self.weight_, x)
        synapse, filtered = torch.zeros_like(current[0]), []
        for now in current:
            synapse = fade * synapse + now
            filtered.append(synapse)
        # the peak of the kernel is 1 by a factor on the input
        peak = self._peak(steps).to(x.dtype)
        spikes: Tensor = neuron(torch.stack(filtered) / peak)[0]
        return spikes.permute(1, 2, 0)

    def _peak(self, steps: int) -> Tensor:
        """The height of the kernel before it is scaled, from its first value, which is the gain."""
        neuron = self.neuron_
        return neuron.gain.expand(neuron.units) / self.kernel(steps)[:, 0]

    def _fitted(self, X: Any) -> Tensor:
        if not hasattr(self, "weight_"):
            raise RangeError("this Tempotron is not fitted yet", mend="call fit(X, y) first")
        x = _spikes(X)
        if x.shape[1] != self.weight_.shape[1]:
            raise ShapeError("another number of channels", given=x.shape[1], expected=self.weight_.shape[1])
        return x.to(self.weight_)


def _spikes(values: Any) -> Tensor:
    x = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    if x.dim() != 3 or 0 in x.shape:
        raise ShapeError("the inputs have another shape", given=tuple(x.shape), expected="[sample, channel, time]")
    x = x if x.is_floating_point() else x.float()
    if not bool(torch.isfinite(x).all()):
        raise RangeError("the inputs hold NaN or infinity")
    return x
