"""gymnasium's walking tasks: HalfCheetah, Swimmer, Walker2d, Hopper, Ant and the two humanoids."""

from typing import Any

from .tasks import Array, Options, Score, Task, between, copied, squared


class Crawler(Task):
    """HalfCheetah and Swimmer: forward speed minus control cost, never ending."""

    skipped = 1

    def bind(self, model: Any) -> None:
        self.skip = self.skipped * bool(self.options["exclude_current_positions_from_observation"])
        self.forward = self.options["forward_reward_weight"]
        self.control = self.options["ctrl_cost_weight"]

    def position(self) -> Array:
        return copied(self.qpos[:, 0])

    def spot(self) -> Array:
        return copied(self.qpos[:, :1])

    def observe(self, out: Array) -> None:
        kept = self.qpos.shape[1] - self.skip
        out[:, :kept] = self.qpos[:, self.skip :]
        out[:, kept:] = self.qvel

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        return self.forward * speed - self.control * squared(action), None


class HalfCheetah(Crawler):
    normal_velocity_noise = True


class Swimmer(Crawler):
    skipped = 2


class Walker(Crawler):
    """Walker2d and Hopper: forward speed, a bonus while healthy, clipped velocities observed."""

    bonus_at_end = False  # v4 pays the healthy bonus at the terminating step too

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.bonus = self.options["healthy_reward"]
        self.ends = bool(self.options["terminate_when_unhealthy"])

    def observe(self, out: Array) -> None:
        kept = self.qpos.shape[1] - self.skip
        out[:, :kept] = self.qpos[:, self.skip :]
        self.xp.clip(self.qvel, -10, 10, out=out[:, kept:])

    def healthy(self) -> Array:
        """Whether height and pitch are in their ranges [N]."""
        return between(self.qpos[:, 1], self.options["healthy_z_range"]) & between(
            self.qpos[:, 2], self.options["healthy_angle_range"]
        )

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        healthy = self.healthy()
        paid = True if self.bonus_at_end and self.ends else healthy
        reward = self.forward * speed + self.bonus * paid - self.control * squared(action)
        return reward, ~healthy if self.ends else None


class WalkerV4(Walker):
    bonus_at_end = True


class Hopper(Walker):
    def healthy(self) -> Array:
        """Also bounds every position from the height on and every velocity."""
        bounds = self.options["healthy_state_range"]
        state = between(self.qpos[:, 2:], bounds).all(1) & between(self.qvel, bounds).all(1)
        return state & super().healthy()


class HopperV4(Hopper):
    bonus_at_end = True


class Ant(Task):
    """Four legs: forward speed of the torso, healthy bonus, control and contact costs."""

    fields = ("xpos", "cfrc_ext")
    normal_velocity_noise = True
    bonus_at_end = False  # as `Walker`
    always_costly = True  # contacts cost although they are not observed

    def bind(self, model: Any) -> None:
        options = self.options
        self.skip = 2 * bool(options["exclude_current_positions_from_observation"])
        self.body = model.body(options["main_body"]).id
        self.shown = options["include_cfrc_ext_in_observation"]
        self.first = 6 * bool(options.get("leave_out_world", True))  # first force component shown
        self.forward = options["forward_reward_weight"]
        self.ends = bool(options["terminate_when_unhealthy"])

    def position(self) -> Array:
        return copied(self.views["xpos"][:, self.body, 0])

    def spot(self) -> Array:
        return copied(self.views["xpos"][:, self.body, :2])

    def contacts(self) -> Array:
        """Clipped contact forces [N, 6 nbody]."""
        forces = self.views["cfrc_ext"].reshape(len(self.qpos), -1)
        return forces.clip(*self.options["contact_force_range"])

    def observe(self, out: Array) -> None:
        kept = self.qpos.shape[1] - self.skip
        end = kept + self.qvel.shape[1]
        out[:, :kept] = self.qpos[:, self.skip :]
        out[:, kept:end] = self.qvel
        if self.shown:
            self.clipped = self.contacts()
            out[:, end:] = self.clipped[:, self.first :]

    def healthy(self) -> Array:
        """Torso height in range (bounds included) and a finite state [N]."""
        low, high = self.options["healthy_z_range"]
        z = self.qpos[:, 2]
        finite = self.xp.isfinite(self.qpos).all(1) & self.xp.isfinite(self.qvel).all(1)
        return finite & (z >= low) & (z <= high)

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        healthy = self.healthy()
        paid = True if self.bonus_at_end and self.ends else healthy
        reward = self.forward * speed + self.options["healthy_reward"] * paid
        reward -= self.options["ctrl_cost_weight"] * squared(action)
        if self.shown or self.always_costly:
            contacts = self.clipped if self.shown else self.contacts()  # observe came just before
            reward -= self.options["contact_cost_weight"] * squared(contacts)
        return reward, ~healthy if self.ends else None


class AntV4(Ant):
    """v4: forces only when asked for (then with the world's row), bonus paid at the end too."""

    bonus_at_end = True
    always_costly = False

    def bind(self, model: Any) -> None:
        shown = self.options["use_contact_forces"]
        self.options = {
            **self.options,
            "main_body": "torso",
            "forward_reward_weight": 1.0,
            "include_cfrc_ext_in_observation": shown,
            "leave_out_world": False,
        }
        super().bind(model)

    @classmethod
    def derived(cls, options: Options) -> tuple[str, ...]:
        return cls.fields if options["use_contact_forces"] else ("xpos",)


class Humanoid(Task):
    """Forward speed of the centre of mass, healthy bonus, control and contact costs."""

    fields = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")

    def bind(self, model: Any) -> None:
        options = self.options
        self.skip = 2 * bool(options["exclude_current_positions_from_observation"])
        self.share = self.alike(model.body_mass / model.body_mass.sum())
        self.parts = [
            self.views[name].reshape(len(self.qpos), -1)[:, left_out:]
            for name, left_out in (
                ("cinert", 10),
                ("cvel", 6),
                ("qfrc_actuator", 6),
                ("cfrc_ext", 6),
            )
            if options[f"include_{name}_in_observation"]
        ]

    def position(self) -> Array | None:
        # only x: gymnasium's mass_center is the mass-weighted mean of xipos
        return self.views["xipos"][:, :, 0] @ self.share

    def spot(self) -> Array | None:
        return (self.views["xipos"][:, :, :2] * self.share[:, None]).sum(1)

    def observe(self, out: Array) -> None:
        at = 0
        for part in (self.qpos[:, self.skip :], self.qvel, *self.parts):
            out[:, at : at + part.shape[1]] = part
            at += part.shape[1]

    def impact(self, weight: float, bounds: Any) -> Array:
        """Cost of the contact forces [N]."""
        forces = self.views["cfrc_ext"].reshape(len(self.qpos), -1)
        return (weight * squared(forces)).clip(*bounds)

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        options = self.options
        healthy = between(self.qpos[:, 2], options["healthy_z_range"])
        reward = options["forward_reward_weight"] * speed + options["healthy_reward"] * healthy
        reward -= options["ctrl_cost_weight"] * squared(action)
        reward -= self.impact(options["contact_cost_weight"], options["contact_cost_range"])
        return reward, ~healthy if options["terminate_when_unhealthy"] else None


class Standup(Humanoid):
    """HumanoidStandup: height over the timestep, minus control and impact costs, plus 1."""

    fields = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.timestep = float(model.opt.timestep)

    def position(self) -> None:
        return None

    def spot(self) -> None:
        return None

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        options = self.options
        cost = options["ctrl_cost_weight"] * squared(action)
        cost += self.impact(options["impact_cost_weight"], options["impact_cost_range"])
        return self.qpos[:, 2] / self.timestep - cost + 1, None
