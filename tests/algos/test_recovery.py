"""ADG on a Gaussian whose noise prediction is known: scores, repairs and what is learnt from."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rheo.algos import recovery
from rheo.algos.recovery import Slices, field, fit, predicted, repaired
from rheo.policies.flow import FlowPolicy
from rheo.policies.normalize import Normalizer

HALF, SIZE, LENGTH, EPISODES = 2, 2, 40, 30
STEPS, LEVEL = 2 * HALF + 1, 30
TURN = 0.97 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
SPREAD = 0.2  # deviation of every number: all but few lie in the box
JOLT = SPREAD**2 * (1 - 0.97**2)  # variance of what a step adds, which keeps it so


def covariance() -> np.ndarray:
    """Of a slice of z' = TURN z + noise, stationary, in deviations, [T * M, T * M]."""
    whole = np.zeros((STEPS, SIZE, STEPS, SIZE))
    for i in range(STEPS):
        for j in range(STEPS):
            power = np.linalg.matrix_power(TURN, abs(i - j))
            whole[i, :, j] = power if i >= j else power.T
    return whole.reshape(STEPS * SIZE, STEPS * SIZE)


def level(k: float) -> tuple[float, float]:
    """A and B of a level of the variance-preserving table, as integrals of its rate."""
    abar = np.exp(-0.1 * k / 100 - 9.9 * k**2 / (2 * 100**2))
    return float(np.sqrt(abar)), float(np.sqrt(1 - abar))


def exact_eps(x: np.ndarray, k: float) -> np.ndarray:
    """E[eps | x] of slices [B, T * M] at a level."""
    a, b = level(k)
    return b * x @ np.linalg.inv(a**2 * covariance() + b**2 * np.eye(STEPS * SIZE))


class Exact(nn.Module):
    """`exact_eps` as a network."""

    def __init__(self) -> None:
        super().__init__()
        self.horizon, self.action_dim = STEPS, SIZE
        self.kind = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def encode(self, obs: Tensor) -> Tensor:
        return obs

    def embed(self, t: Tensor) -> Tensor:
        return t

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        (k,) = np.unique(np.round(100 * (1 - emb.numpy())))
        return torch.as_tensor(exact_eps(x.flatten(-2).numpy(), k)).view_as(x)


@pytest.fixture
def exact() -> FlowPolicy:
    how = {"path": "betas", "levels": 100, "betas": "vp", "prediction": "eps", "steps": 10}
    how |= {"sampler": "euler", "eta": 0.0, "clip_x": False, "clip_a": False, "squash": "clip"}
    norm = Normalizer(SIZE, kind="gaussian").double()
    norm.fit(SPREAD * torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, SIZE))
    return FlowPolicy(Exact(), **how, obs_norm=Normalizer(STEPS, kind="none"), action_norm=norm)


def recorded() -> np.ndarray:
    """Episodes of the Gaussian process end to end, [S, M]."""
    rng, episodes = np.random.default_rng(0), []
    for _ in range(EPISODES):
        z = [SPREAD * rng.normal(size=SIZE)]
        for _ in range(LENGTH - 1):
            z.append(TURN @ z[-1] + np.sqrt(JOLT) * rng.normal(size=SIZE))
        episodes.append(np.array(z))
    return np.concatenate(episodes)


def cut(rows: np.ndarray, kind: torch.dtype = torch.float64) -> Slices:
    start = torch.arange(len(rows)) // LENGTH * LENGTH
    return Slices(torch.as_tensor(rows).to(kind), start, start + LENGTH, HALF)


def corrupted(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A third of the steps worse, and which."""
    rng, rows = np.random.default_rng(1), recorded()
    hit = rng.random(len(rows)) < 0.3
    return rows + scale * SPREAD * rng.uniform(-1, 1, rows.shape) * hit[:, None], hit


def auc(score: np.ndarray, hit: np.ndarray) -> float:
    """The probability that a corrupted step has a larger score than another one."""
    return float((score[hit][:, None] > score[~hit]).mean())


def test_slices_stay_inside_their_episode() -> None:
    rows = np.arange(2.0 * LENGTH)[:, None] * np.ones(SIZE)
    got = cut(rows).around(torch.tensor([0, 20, LENGTH - 1, LENGTH]))
    assert got.inside.int().tolist() == [
        [0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1],
    ]
    wanted = [[0, 0, 0, 1, 2], [18, 19, 20, 21, 22], [37, 38, 39, 0, 0], [0, 0, 40, 41, 42]]
    np.testing.assert_array_equal(got.value[..., 0].numpy(), wanted)


def test_the_noise_of_a_step_is_that_of_its_slices_centre_in_closed_form(exact) -> None:
    rows, _ = corrupted(1.0)
    got = predicted(exact, cut(rows), LEVEL).numpy()
    for step in (7, 20, 55):
        whole = rows[step - HALF : step + HALF + 1].reshape(1, -1)
        noise = exact_eps(level(LEVEL)[0] * whole / SPREAD, LEVEL).reshape(STEPS, SIZE)
        np.testing.assert_allclose(got[step], noise[HALF], rtol=1e-6)


def test_detection_is_a_coin_without_corruption_and_better_the_more_there_is(exact) -> None:
    found = []
    for scale in (0.0, 0.5, 1.0, 2.0):
        rows, hit = corrupted(scale)
        noise = predicted(exact, cut(rows), LEVEL).numpy()
        found.append(auc(np.square(noise).mean(1), hit))
    assert abs(found[0] - 0.5) < 0.05
    assert found[1] > found[0] + 0.03 and found[2] > found[1] + 0.05 and found[3] > found[2] + 0.05
    assert found[3] > 0.85


def by_hand(rows: np.ndarray, flagged: np.ndarray, step: int) -> np.ndarray:
    """A step's repair by three deterministic transitions, [M]."""
    place = np.arange(step - HALF, step + HALF + 1)
    whole, known = rows[place].reshape(-1), ~flagged[place].reshape(-1)
    whole = whole / SPREAD
    x = level(30)[0] * whole
    for k, after in ((30, 20), (20, 10), (10, 0)):
        (a, b), (a_next, b_next) = level(k), level(after)
        x = np.where(known, a * whole, x)
        eps = exact_eps(x[None], k)[0]
        x = a_next * (x - b * eps) / a + b_next * eps
    return (SPREAD * x.reshape(STEPS, SIZE)[HALF]).clip(-1, 1)


def test_a_repair_is_the_reverse_process_around_what_is_known(exact) -> None:
    rows, hit = corrupted(1.0)
    flagged = np.repeat(hit[:, None], SIZE, 1)
    flagged[hit.nonzero()[0][::3], 1] = False  # of a step one number may be known
    got = repaired(exact, cut(rows), torch.as_tensor(flagged), LEVEL).numpy()
    np.testing.assert_array_equal(got[~flagged], rows[~flagged])
    place = np.arange(len(rows)) % LENGTH
    inner = flagged.any(1) & (place >= HALF) & (place < LENGTH - HALF)
    for step in inner.nonzero()[0][:40]:
        wanted = np.where(flagged[step], by_hand(rows, flagged, step), rows[step])
        np.testing.assert_allclose(got[step], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_repaired_numbers_lie_nearer_to_the_truth(exact, scale) -> None:
    truth, (rows, hit) = recorded(), corrupted(scale)
    flagged = torch.as_tensor(np.repeat(hit[:, None], SIZE, 1))
    got = repaired(exact, cut(rows), flagged, LEVEL).numpy()
    before, after = (np.sqrt(np.square(x - truth)[hit].mean()) for x in (rows, got))
    assert after < before * {0.5: 0.75, 1.0: 0.5, 2.0: 0.4}[scale]


def test_only_trusted_numbers_inside_their_episode_count() -> None:
    """The first loss, of a network that says 0, is the mean square of their noise."""
    rows, hit = corrupted(2.0)
    slices, trusted = cut(rows, torch.float32), torch.as_tensor(~hit)[:, None].repeat(1, SIZE)
    trusted[::5, 0] = False
    policy = field_of(slices)
    start = [p.detach().clone() for p in policy.parameters()]
    (loss,) = fit(policy, slices, (1, LEVEL), 1, torch.Generator().manual_seed(0), trusted)
    drawn = torch.Generator().manual_seed(0)
    centre = torch.randint(len(rows), (recovery.BATCH,), generator=drawn)
    torch.randint(1, LEVEL + 1, (recovery.BATCH,), generator=drawn)
    noise = torch.randn((recovery.BATCH, STEPS, SIZE), generator=drawn).numpy()
    place = centre[:, None].numpy() + np.arange(-HALF, HALF + 1)
    counted = (place // LENGTH == centre[:, None].numpy() // LENGTH)[..., None]
    counted = counted & trusted.numpy()[place.clip(0, len(rows) - 1)]
    np.testing.assert_allclose(float(loss), np.square(noise)[counted].mean(), rtol=1e-5)
    assert not all(torch.equal(p, q) for p, q in zip(policy.parameters(), start, strict=True))


def test_what_nobody_trusts_teaches_nothing() -> None:
    slices = cut(recorded(), torch.float32)
    policy = field_of(slices)
    start = [p.detach().clone() for p in policy.parameters()]
    none = torch.zeros(slices.rows.shape, dtype=torch.bool)
    losses = fit(policy, slices, (1, LEVEL), 2, torch.Generator().manual_seed(0), none)
    assert [float(loss) for loss in losses] == [0.0, 0.0]
    for one, other in zip(policy.parameters(), start, strict=True):
        assert torch.equal(one, other)


def field_of(slices: Slices) -> FlowPolicy:
    """An untrained network, always the same."""
    torch.manual_seed(0)
    return field(slices.rows, HALF, "eps")


def test_levels_are_those_that_are_asked_for(monkeypatch) -> None:
    """A detector is never shown what lies below its level, nor a denoiser what lies above."""
    slices, seen = cut(recorded(), torch.float32), []
    policy = field_of(slices)
    asked = policy.match_errors
    monkeypatch.setattr(
        policy, "match_errors", lambda *given: (seen.append(given[3]), asked(*given))[1]
    )
    for low, high in ((30, 100), (1, 30)):
        seen.clear()
        list(fit(policy, slices, (low, high), 4, torch.Generator().manual_seed(0)))
        k = 100 * (1 - torch.cat(seen))
        assert k.min() == pytest.approx(low, abs=1e-3) and k.max() == pytest.approx(high, abs=1e-3)
    assert len(seen[0]) == recovery.BATCH
