"""What a person sees while a run goes on, and where its time goes. Monotonic clocks only."""

import functools
import math
import sys
from collections import deque
from collections.abc import Mapping
from time import perf_counter
from types import TracebackType
from typing import IO, Any

import torch

from rheo.algos.contract import Algorithm
from rheo.errors import printable

from .screen import raw


class Timer:
    """Shares of wall time by name: `with timer("env"): ...`.

    Spans may nest; time inside an inner span is charged to the inner one only, so that acting
    inside an environment step counts as inference. Costs well under a microsecond per span.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.stack: list[str] = []
        self.start = self.last = perf_counter()
        self.spans: dict[str, Span] = {}

    def __call__(self, name: str) -> "Span":
        span = self.spans.get(name)
        if span is None:
            span = self.spans[name] = Span(self, name)
            self.totals.setdefault(name, 0.0)
        return span

    def shares(self) -> dict[str, float]:
        """Share of each name in the time since the last call of `shares`, then starts anew."""
        now = perf_counter()
        if self.stack:
            self.totals[self.stack[-1]] += now - self.last
        elapsed = max(now - self.start, 1e-9)
        shares = {name: total / elapsed for name, total in self.totals.items()}
        self.totals = dict.fromkeys(self.totals, 0.0)
        self.start = self.last = now
        return shares


class Span:
    """One name of a Timer, used as a context."""

    __slots__ = ("timer", "name")

    def __init__(self, timer: Timer, name: str) -> None:
        self.timer, self.name = timer, name

    def __enter__(self) -> None:
        timer, now = self.timer, perf_counter()
        if timer.stack:
            timer.totals[timer.stack[-1]] += now - timer.last
        timer.stack.append(self.name)
        timer.last = now

    def __exit__(self, *_: object) -> None:
        timer, now = self.timer, perf_counter()
        timer.totals[timer.stack.pop()] += now - timer.last
        timer.last = now


class Display:
    """Progress of a run: a live line on a terminal, a plain line per `update` elsewhere.

    total: steps of the run; start: the step it begins at (a resumed run); title: its name.
    Use as a context; `update(step, metrics, shares)` at every log, `tick(step)` at every step.
    """

    refresh = 0.25  # seconds between redraws

    def __init__(
        self, total: int, *, start: int = 0, title: str = "", stream: IO[str] | None = None
    ) -> None:
        self.total, self.step, self.title = total, start, title
        self.stream = stream or sys.stdout
        self.drawn = perf_counter()
        self.seen = deque([(self.drawn, start)], maxlen=4)  # time and step of the last updates
        self.rate = 0.0
        self.metrics: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.live: Any = None

    def __enter__(self) -> "Display":
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(file=raw(self.stream)), auto_refresh=False)
            self.live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.draw()
            self.live.__exit__(kind, error, trace)
            self.live = None

    def tick(self, step: int) -> None:
        """Notes the step; redraws a terminal a few times per second at most."""
        self.step = step
        if self.live is not None and perf_counter() - self.drawn > self.refresh:
            self.draw()

    def update(
        self, step: int, metrics: Mapping[str, float], shares: Mapping[str, float] | None = None
    ) -> None:
        """Takes new figures (the latest of each name stays shown) and shows them."""
        self.step = step
        self.measure()
        if step > self.seen[-1][1]:
            self.seen.append((perf_counter(), step))
        self.metrics.update(metrics)
        if shares is not None:
            self.shares = dict(shares)
        if self.live is not None:
            self.draw()
        else:
            print(self.line(), file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Prints a line that stays, above the live one."""
        if self.live is not None:
            self.live.console.print(printable(text), markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def measure(self) -> None:
        """Steps per second over the last few updates, so that a run's warm-up is soon forgotten."""
        now = perf_counter()
        since, step = self.seen[0]
        if self.step > step and now > since:
            self.rate = (self.step - step) / (now - since)

    def draw(self) -> None:
        """Redraws the live line."""
        self.measure()
        self.drawn = perf_counter()
        from rich.text import Text

        self.live.update(Text(printable(self.line())), refresh=True)

    def line(self) -> str:
        """Steps, return, speed, shares of time, time left."""
        share = min(self.step / self.total, 1.0) if self.total else 1.0  # a chunk may overshoot
        parts = [self.title] if self.title else []
        parts.append(f"step {self.step:,} / {self.total:,} ({share:.0%})")
        for kind, label, success in (("env", "", "success"), ("eval", "eval ", "success_once")):
            if f"{kind}/return" in self.metrics:
                parts.append(f"{label}return {self.metrics[f'{kind}/return']:.4g}")
            if f"{kind}/{success}" in self.metrics:
                parts[-1] += f" success {self.metrics[f'{kind}/{success}']:.0%}"
        shown = ("val/value", "val/loss", "policy/loss")
        loss = next((name for name in shown if name in self.metrics), None)
        if loss and "env/return" not in self.metrics:
            parts.append(f"{loss} {self.metrics[loss]:.4g}")
        parts.append(f"{self.rate:,.0f} steps/s" if self.rate >= 10 else f"{self.rate:.2g} steps/s")
        if self.shares:
            parts.append(" ".join(f"{name} {part:.0%}" for name, part in self.shares.items()))
        if self.rate > 0:
            parts.append(f"{duration(max(self.total - self.step, 0) / self.rate)} left")
        return " | ".join(parts)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a person writes them."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def time_frozen_base(algo: Algorithm, timer: Timer) -> None:
    """Charges the time inside a policy that is not trained to "base", wherever it is called.

    On a GPU that is the time of the launches.
    """
    if algo.policy is None or any(each.requires_grad for each in algo.policy.parameters()):
        return
    act = algo.policy.act

    @functools.wraps(act)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return act(*args, **kwargs)
        with timer("base"):
            return act(*args, **kwargs)

    algo.policy.act = timed
