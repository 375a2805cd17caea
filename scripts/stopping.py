"""What ends a run before its last step: a signal to the process, and a metric beyond its limit."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from rheo import ranks

from .grace import GRACE, SAVING, Watch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Stop:
    """Whether a signal asked the process to stop; true in a condition once it did.

    grace: seconds after which it is ended where it stands; None or 0: never. saving: whether a save
    is under way, which is waited for longer. last_word: what is said then of what was saved.
    """

    def __init__(self, grace: float | None = GRACE) -> None:
        self.signal: str | None = None
        self.interrupted = False  # by a second Ctrl-C
        self.grace = grace
        self.saving = False
        self.last_word: Callable[[], str] = lambda: "nothing was saved"

    def __bool__(self) -> bool:
        return self.signal is not None

    def why(self) -> str | None:
        """'stopped by SIGINT', or None."""
        return f"stopped by {self.signal}" if self else None

    def watch(self, loop: Any) -> None:
        """From now on it is a run's training that is waited for; of several ranks for longer.

        They wait for one another, and the others may not have heard of it.
        """
        self.grace = loop.cfg["signal"]["grace"]
        if self.grace and ranks.size() > 1:
            self.grace *= SAVING
        self.last_word = lambda: (
            f"signal.grace={loop.cfg['signal']['grace']:g}; the last checkpoint is "
            f"{f'of step {loop.saved}' if loop.saved >= 0 else 'still to come'}; go on with: "
            f"{loop.run.resume_command()}"
        )
        acting = getattr(loop.source, "replay", loop.source)
        for env in (getattr(acting, "env", None), loop.eval_env):
            while env is not None:  # those in other processes are waited for
                env.hurried = self.__bool__
                env = getattr(env, "env", None)

    def agreed(self) -> bool:
        """Whether any rank was asked to; asked by all of them at the same place."""
        number = ranks.largest(signal.Signals[self.signal] if self.signal else 0)
        if number:
            self.signal = signal.Signals(number).name
        return number > 0


@contextmanager
def stop_signals(grace: float | None = GRACE) -> Iterator[Stop]:
    """Those of SIGNALS set the flag; a second SIGINT raises KeyboardInterrupt.

    A terminal that is closed sends SIGHUP; where that is ignored (nohup) it stays so. Handlers are
    put back at the end. Forked children inherit them: there SIGINT does nothing (the parent ends
    its workers) and the others do what they do by default. A process that does not follow is ended
    (`grace.Watch`).
    """
    stop, owner = Stop(grace), os.getpid()

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and stop.signal == "SIGINT":
            stop.interrupted = True
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number).name

    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in SIGNALS if not (deaf and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        with Watch(stop, heard):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- limits on metrics ---------------------------------------------------------------------------


class Sign(NamedTuple):
    """A metric whose size tells that training went wrong."""

    metric: str
    meaning: str


SIGNS = {  # keys of `limits`
    "q": Sign(
        "critic/q",
        "the critic's values run away: lower algo.critic_lr or algo.target_rate, set "
        "critic.layer_norm=true, or check the scale of the rewards",
    ),
    "value": Sign(
        "critic/value",
        "the state values run away: lower algo.learn.value_lr, or set "
        "algo.learn.scale_rewards=true",
    ),
    "gradient_norm": Sign(
        "policy/gradient_norm",
        "the policy's gradients explode: lower algo.learn.policy_lr or algo.learn.max_norm",
    ),
    "first_ratio_error": Sign(
        "policy/first_ratio_error",
        "the ratio is not 1 before the first step, so acting and learning disagree about the "
        "policy's density: the policy's settings were changed, or its code has a fault",
    ),
    "kl": Sign(
        "policy/kl",
        "the policy leaps away from the one that acted: lower algo.learn.policy_lr, "
        "algo.learn.clip or algo.learn.kl_stop",
    ),
    "saturated": Sign(
        "rollout/saturated",
        "nearly all actions lie on their bounds: lower the noise (algo.noise.std_max, policy.std) "
        "or the policy's learning rate, or anchor it to its base",
    ),
}


UNBOUND = (
    "policy.prediction=eps divides by the path's A, which is near 0 where a chain starts: set "
    "policy.clip_a=true; else "
)


def diagnosis(
    row: Mapping[str, Any], limits: Mapping[str, float | None], policy: Mapping[str, Any]
) -> str | None:
    """What is wrong with a row of metrics, None when every limit is kept.

    policy: its node of the configuration.
    """
    for name, sign in SIGNS.items():
        limit = limits.get(name)
        value = row.get(sign.metric)
        if limit is not None and value is not None and abs(float(value)) > limit:
            over = f"{float(value):g}, above limits.{name}={limit:g}"
            unbound = policy.get("prediction") == "eps" and not policy.get("clip_a", False)
            cause = UNBOUND if name == "saturated" and unbound else ""
            return f"{sign.metric} is {over}: {cause}{sign.meaning}"
    return None
