"""A frozen policy that codes of its noise steer: what it answers, and whether it can be steered."""

import logging
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.coded import NoiseMap
from .contract import World

log = logging.getLogger("rheo")
EDGE = 1e-4  # of an action beyond its box that is rounding
ROUNDS = 8  # of a secant iteration per step, by which a base is run backwards
TRIES = 4  # per initial state: what the best of so many noises reaches


class Frozen:
    """a = policy.act(obs, noise), a deterministic map that is called as a black box.

    noise_map makes noise [..., T, Da] of codes u [..., R, Da] in [-1, 1], its bound included:
    whoever steers decodes here, and once.
    """

    def __init__(self, policy: Any, noise_map: NoiseMap, action_dim: int) -> None:
        self.policy, self.noise_map, self.action_dim = policy, noise_map, action_dim
        self.horizon = len(noise_map.matrix)

    def act(self, obs: Tensor, code: Tensor) -> Tensor:
        """Actions [..., T, Da] of codes [..., R, Da], as they are executed."""
        return self.policy.act(obs, self.noise_map(code)).clamp(-1, 1)

    def prior(self, rows: int, generator: torch.Generator) -> Tensor:
        """Codes [rows, R, Da] of the policy's own noise."""
        return self.noise_map.prior((rows,), self.action_dim, generator)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """The policy's own noise, [rows, T, Da]."""
        shape = (rows, self.horizon, self.action_dim)
        return draw.normal(shape, generator, device=generator.device)

    @torch.no_grad()
    def unsteered(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Actions from its own noise, [N, T, Da]."""
        return self.policy.act(obs, self.noise(len(obs), generator)).clamp(-1, 1)

    @torch.no_grad()
    def mapped(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Actions from its own noise through the map, [N, T, Da]."""
        return self.act(obs, self.prior(len(obs), generator))

    @torch.no_grad()
    def ask(self, obs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` codes of its own noise, below each its answer, [N, count, R + T, Da]."""
        code = self.prior(len(obs) * count, generator)
        action = self.act(obs.repeat_interleave(count, 0), code)
        return torch.cat([code, action], 1).unflatten(0, (len(obs), count))

    @torch.no_grad()
    def recoded(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """A batch with codes [B, R, Da] for the recorded ones among its actions, and metrics.

        The base is run backwards from them (`FlowPolicy.invert`, arXiv:2606.13675); what its
        answers to these codes miss the actions by is told, the mean over elements in action units.
        Other rows hold codes, which stay.
        """
        if batch.recorded is None:
            return batch, {}
        action, recorded = batch.action, batch.recorded[:, None, None]
        code = self.noise_map.code(self.policy.invert(batch.obs, action, ROUNDS))
        gap = (self.act(batch.obs, code) - action).abs() * recorded
        share = recorded.expand_as(gap).float().mean().clamp_min(1e-6)
        told = {"base/recorded_gap": gap.mean() / share}
        return batch._replace(action=torch.where(recorded, code, action)), told

    @torch.no_grad()
    def probe(self, obs: Tensor) -> None:
        """Raises ValueError for a policy that cannot be steered, found out at obs [N, O].

        Actions outside the box, where the environment's bounds do not reach, are told.
        """
        generator = torch.Generator(obs.device).manual_seed(0)
        one, two = (self.noise(len(obs), generator) for _ in range(2))
        first, again, other = (self.policy.act(obs, noise) for noise in (one, one, two))
        if not isinstance(first, Tensor) or first.shape != one.shape:
            found = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(
                f"policy: its act(obs, noise) returned {found} for noise {list(one.shape)}; an "
                "action has the shape of its noise"
            )
        if not bool(first.isfinite().all()):
            raise ValueError("policy: its act(obs, noise) returned numbers that are not finite")
        if not torch.equal(first, again):
            raise ValueError(
                "policy: its act gives two actions for one noise; steering needs a deterministic "
                "map, so let all randomness come from the noise that is passed (DDIM with eta=0, "
                "or an ordinary differential equation)"
            )
        if torch.equal(first, other):
            raise ValueError("policy: its act ignores the noise, so there is nothing to steer")
        tell_outside(first)

    def gate(self, world: World, least: float) -> dict[str, float]:
        """What it is worth from its own noise, through the map, as the best of TRIES, and stepwise.

        Means over episodes. The best of TRIES episodes of each initial state is about what steering
        the first noise of an episode alone could reach. Stepwise it plans anew after every action
        of its chunks: what that mends need not be learned. Raises ValueError when the map keeps
        less than the share `least` of its worth; 0: never.
        """
        plain = torch.stack([world.worths(self.unsteered, attempt) for attempt in range(TRIES)])
        full, best = float(plain[0].mean()), float(plain.amax(0).mean())
        mapped = float(world.worths(self.mapped).mean())
        told = {"base/worth": full, "base/mapped_worth": mapped, "base/best_worth": best}
        text = (
            f"{full:.4g} from its own noise, {mapped:.4g} through algo.noise_map, "
            f"{best:.4g} as the best of {TRIES} per initial state"
        )
        if world.execute > 1:
            stepwise = float(world.worths(self.unsteered, execute=1).mean())
            told["base/stepwise_worth"] = stepwise
            text += f", {stepwise:.4g} with a new plan after every action (env.execute=1)"
        log.info("base: %s (%d episodes each)", text, plain.shape[1])
        if least > 0 and mapped < full - (1 - least) * abs(full):
            raise ValueError(
                f"algo.noise_map: the base keeps {mapped:.4g} of {full:.4g} when its noise goes "
                f"through the map, less than algo.gate={least:g} of it; raise "
                "algo.noise_map.rows, or set algo.gate=0 to steer it all the same"
            )
        return told


def tell_outside(action: Tensor) -> None:
    """Says how many of a base's actions lie outside [-1, 1]; ValueError where most do."""
    share = float((action.abs() > 1 + EDGE).float().mean())
    if share == 0:
        return
    worst = float(action.flatten()[action.abs().argmax()])
    text = f"policy: {share:.0%} of its actions lie outside [-1, 1] (the farthest is {worst:.4g})"
    if share > 0.5:
        raise ValueError(
            f"{text}, so they are in other units: let it return 2 (a - low) / (high - low) - 1 for "
            "the environment's bounds; they are mapped back there"
        )
    log.warning("%s; they are clipped there: let it return actions inside", text)
