"""The loop: it finds what is known, and a stop at any step changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thrifty.base import events
from thrifty.base.errors import RunError
from thrifty.train import Schedule, train
from thrifty.train.loop import drawn

ROWS = 40


class Regression:
    """Least squares, whose solution is known. stop: the call at which something breaks."""

    def __init__(self, stop: int | None = None, bound: float | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs, self.outputs = torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 3, generator=generator)
        self.weight = torch.zeros(5, 3, requires_grad=True)
        self.unused = torch.ones(2, requires_grad=True)
        self.stop, self.bound, self.calls = stop, bound, 0

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight, "unused": self.unused}

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return (self.inputs[rows] @ self.weight - self.outputs[rows]).square().mean()

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def settle(self) -> dict[str, torch.Tensor]:
        if self.bound is not None:
            self.weight.clamp_(-self.bound, self.bound)
        return {}


def test_least_squares_ends_at_the_closed_form(tmp_path: Path) -> None:
    task = Regression()
    losses = train(task, ROWS, Schedule(1500, ROWS, 0.05, final=0.0), tmp_path / "state", seed=0)
    exact = torch.linalg.lstsq(task.inputs, task.outputs).solution
    torch.testing.assert_close(task.weight.detach(), exact, rtol=1e-3, atol=1e-3)
    assert losses[-1] == pytest.approx(float((task.inputs @ exact - task.outputs).square().mean()), rel=1e-4)
    assert torch.equal(task.unused.detach(), torch.ones(2))


@pytest.mark.parametrize("stop", [1, 2, 7, 12])
def test_a_stopped_run_ends_with_the_same_bytes(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.train.loop.SAVED", -1.0)  # after every step
    schedule, whole = Schedule(12, 6, 0.1), Regression()
    expected = train(whole, ROWS, schedule, tmp_path / "whole", seed=3)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop), ROWS, schedule, tmp_path / "state", seed=3)
    again = Regression()
    said: list[str] = []
    with events.listening(lambda event: said.append(event.message) if event.kind == "note" else None):
        losses = train(again, ROWS, schedule, tmp_path / "state", seed=3)
    assert losses == expected
    assert torch.equal(again.weight, whole.weight)
    assert again.calls == 12 - (stop - 1)
    assert said == ([f"{stop - 1} steps were already done"] if stop > 1 else [])
    assert (tmp_path / "state").read_bytes() == (tmp_path / "whole").read_bytes()
    other = Regression()
    train(other, ROWS, schedule, tmp_path / "other", seed=4)
    assert not torch.equal(other.weight, whole.weight)


def test_every_row_comes_once_before_any_comes_again() -> None:
    order = torch.cat([drawn(10, 4, step, seed=5) for step in range(10)])
    for epoch in order.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()


def test_any_seed_will_do() -> None:
    assert drawn(10, 4, 0, (1 << 63) - 1).tolist() != drawn(10, 4, 0, 0).tolist()


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(100, 1, 2.0, warm_up=0.1, final=0.25)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert max(rates) == 2.0 and rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.5, abs=0.01)
    assert Schedule(1, 1, 2.0).at(0) == 2.0


def test_parameters_are_brought_back_after_every_step(tmp_path: Path) -> None:
    task = Regression(bound=0.01)
    train(task, ROWS, Schedule(20, ROWS, 0.1), tmp_path / "state", seed=0)
    assert float(task.weight.detach().abs().max()) == pytest.approx(0.01)


def test_a_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    task = Regression()
    task.outputs[:] = torch.inf
    with pytest.raises(RunError, match="the loss of step 1 of training is inf; a smaller rate may help"):
        train(task, ROWS, Schedule(5, 4, 0.1), tmp_path / "state", seed=0)


class Rated(Regression):
    """Two columns with rates of their own, which follow from where they are. asked: the values at every question."""

    def __init__(self, stop: int | None = None, chosen: dict[str, float] | None = None) -> None:
        super().__init__(stop)
        self.first, self.second = (self.weight.detach()[:, part].clone().requires_grad_() for part in (slice(0, 1), slice(1, 3)))
        self.chosen, self.asked = chosen, []

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"first": self.first, "second": self.second}

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        self.weight = torch.cat([self.first, self.second], 1)
        return super().loss(rows)

    def factors(self) -> dict[str, float]:
        self.asked.append(float(self.first.abs().sum()))
        return {"second": 0.3 + self.asked[-1]} if self.chosen is None else self.chosen


def test_a_factor_is_a_rate_of_its_own(tmp_path: Path) -> None:
    """Adam's first steps move every value by its rate, whatever the gradient."""
    task = Rated(chosen={"second": 0.25})
    train(task, ROWS, Schedule(1, ROWS, 0.1, every=1), tmp_path / "state", seed=0)
    torch.testing.assert_close(task.first.detach().abs(), torch.full((5, 1), 0.1))
    torch.testing.assert_close(task.second.detach().abs(), torch.full((5, 2), 0.025))


def test_factors_of_one_are_the_plain_schedule(tmp_path: Path) -> None:
    plain, rated = Rated(), Rated(chosen={"first": 1.0})
    expected = train(plain, ROWS, Schedule(9, 6, 0.1), tmp_path / "plain", seed=2)
    assert train(rated, ROWS, Schedule(9, 6, 0.1, every=2), tmp_path / "rated", seed=2) == expected
    assert torch.equal(rated.weight, plain.weight)
    assert len(plain.asked) == 0 and len(rated.asked) == 5


@pytest.mark.parametrize("stop", [2, 5, 6, 11])
def test_a_run_with_factors_that_was_stopped_ends_with_the_same_bytes(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two questions the factors are those of the last, not of where the stop was."""
    monkeypatch.setattr("thrifty.train.loop.SAVED", -1.0)
    schedule, whole = Schedule(12, 6, 0.1, every=5), Rated()
    expected = train(whole, ROWS, schedule, tmp_path / "whole", seed=3)
    assert len(whole.asked) == 3
    with pytest.raises(KeyboardInterrupt):
        train(Rated(stop), ROWS, schedule, tmp_path / "state", seed=3)
    again = Rated()
    assert train(again, ROWS, schedule, tmp_path / "state", seed=3) == expected
    assert again.asked == whole.asked[-(-(stop - 1) // 5) :]
    assert (tmp_path / "state").read_bytes() == (tmp_path / "whole").read_bytes()


class Following(Regression):
    """What is trained is seen through a moving average of itself, and now and then an entry starts again at another point."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__(stop)
        self.average = torch.zeros(5, 3)

    def state(self) -> dict[str, torch.Tensor]:
        return {"average": self.average}

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        return super().loss(rows) + (self.weight - self.average).square().mean()

    def settle(self) -> dict[str, torch.Tensor]:
        self.average.lerp_(self.weight, 0.1)
        moved = self.weight > 0.2
        self.weight[moved] -= 0.15
        return {"weight": moved}


@pytest.mark.parametrize("stop", [3, 9])
def test_what_changes_besides_is_resumed_too(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.train.loop.SAVED", -1.0)
    schedule, whole = Schedule(12, 6, 0.1), Following()
    expected = train(whole, ROWS, schedule, tmp_path / "whole", seed=3)
    with pytest.raises(KeyboardInterrupt):
        train(Following(stop), ROWS, schedule, tmp_path / "state", seed=3)
    again = Following()
    assert train(again, ROWS, schedule, tmp_path / "state", seed=3) == expected
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.average, whole.average)
    assert float(whole.average.abs().max()) > 0
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "state").read_bytes()


def test_moments_of_moved_entries_start_again_and_others_stay(tmp_path: Path) -> None:
    """After one step the moments are known: (1 - beta) g and (1 - beta) g^2; zero where `settle` says so."""

    class Moving(Regression):
        def settle(self) -> dict[str, torch.Tensor]:
            self.moved = torch.arange(15).view(5, 3) % 2 == 0
            return {"weight": self.moved}

    task, plain = Moving(), Regression()
    for name, one in (("moved", task), ("plain", plain)):
        train(one, ROWS, Schedule(1, 6, 0.1), tmp_path / name, seed=3)
    found, expected = (load_file(tmp_path / name) for name in ("moved", "plain"))
    for moment in ("mean.weight", "square.weight"):
        assert torch.equal(found[moment], expected[moment].masked_fill(task.moved, 0))
        assert bool((expected[moment] != 0).all())
