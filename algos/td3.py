"""TD3: a deterministic actor that climbs Q, the other baseline beside SAC."""

from torch import Tensor

from .delayed import Delayed


class TD3(Delayed):
    """Twin delayed deterministic policy gradients (arXiv:1802.09477), as `Delayed` has them."""

    def policy_loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """-mean Q_1(s, pi(s)), []; recorded actions have no part in it."""
        return -self.critic(obs, self.policy(obs))[0].mean(), {}
