"""Plans of recorded windows: what counts in their loss, what they are told, and that they learn."""

from typing import Any

import pytest
import torch
from shipped import config

from rheo.algos import align
from rheo.algos.align import Align
from rheo.algos.plan import Plan
from rheo.envs.batch import Windows
from rheo.errors import RheoError
from rheo.policies.drafting import DraftedPolicy
from rheo.policies.nets import MLP
from rheo.policies.normalize import Normalizer
from rheo.policies.plan import PlanPolicy

STATE, ACTION, T, ROWS = 2, 1, 3, 16


class Source:
    """What a source of plans says of itself."""

    labels, pair_batches, judged = ["return"], 1, None


def learner(name="plan", kind=PlanPolicy, want=(1.0,), run_updates=1000, executed=1, **changes):
    """A small algorithm over plans with its shipped values."""
    net = MLP(
        STATE + 2 * len(want), STATE + ACTION, T,
        width=64, depth=2, encoder_depth=1, activation="silu",
    )  # fmt: skip
    kept: dict[str, Any] = dict(config("plan")["policy"])
    for key in ("_target_", "net"):
        del kept[key]
    kept |= {"obs_norm": Normalizer(STATE, kind="none"), "want": [*want]}
    kept |= {"action_norm": Normalizer(ACTION, kind="none")}
    kept |= {"begin": 0.5, "draft_width": 16} if kind is DraftedPolicy else {}
    node = {key: value for key, value in config(name)["algo"].items() if key != "_target_"}
    generator = torch.Generator().manual_seed(0)
    made: Any = Align if name == "align" else Plan
    given = {"policy": kind(net, **kept), "generator": generator, "run_updates": run_updates}
    return made(**given, executed=executed, **(node | changes))


def windows(rows=ROWS, labels=1, seed=0) -> Any:
    """Windows of noise whose last step is past the end in every other one."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn((rows, T, STATE), generator=generator)
    action = 2 * torch.rand((rows, T, ACTION), generator=generator) - 1
    inside = torch.ones(rows, T, dtype=torch.bool)
    inside[::2, -1] = False
    strength = torch.rand((rows, labels), generator=generator)
    return Windows(state[:, 0], action, inside, state, strength)


def given(algo, batch, seed=0):
    """What a loss is of, with fixed draws."""
    generator = torch.Generator().manual_seed(seed)
    obs, plan, inside = algo.planned(batch)
    told = algo.drawn(batch.strength, generator)
    noise = algo.policy.noise(len(obs), generator)
    t = torch.rand(len(obs), generator=generator)
    return [obs, plan, inside, batch.strength, told, noise, t]


# ---- the loss -------------------------------------------------------------------------------


def test_the_loss_weighs_what_is_acted_and_leaves_out_what_is_known():
    """Of a network that foretells 0 errors are |plan|^2: the weighted mean by hand."""
    algo, batch = learner(executed=2, action_weight=7.0), windows()
    obs, plan, inside, strength, told, noise, t = given(algo, batch)
    weight = torch.ones(T, STATE + ACTION)
    weight[0, :STATE] = 0
    weight[:2, STATE:] = 7
    total = count = 0.0
    for row in range(ROWS):
        for step in range(T if inside is None or inside[row, -1] else T - 1):
            total += float((weight[step] * plan[row, step] ** 2).sum())
            count += float(weight[step].sum())
    with torch.no_grad():
        loss = algo.loss(algo.policy, obs, plan, inside, strength, told, noise, t)
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_what_stands_past_an_episodes_end_is_learned_only_where_asked():
    for padding in (False, True):
        algo, batch = learner(learn_padding=padding), windows()
        past = ~batch.inside[..., None]
        other = batch._replace(
            action=torch.where(past, 0.9, batch.action), state=torch.where(past, 5.0, batch.state)
        )
        # x_t of these steps is another one too, which this network, whose outlet is zero, ignores
        with torch.no_grad():
            losses = [float(algo.loss(algo.policy, *given(algo, one))) for one in (batch, other)]
        assert (losses[0] == losses[1]) is not padding


def test_each_label_is_kept_from_a_share_of_the_windows_by_itself():
    algo = learner(drop=0.3, want=(0.5, 0.5))
    told = algo.drawn(torch.zeros(20_000, 2), torch.Generator().manual_seed(0))
    assert told.unique().tolist() == [0, 1]
    assert told.mean(0).tolist() == pytest.approx([0.7, 0.7], abs=0.015)
    assert float((told[:, 0] * told[:, 1]).mean()) == pytest.approx(0.49, abs=0.015)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_guidance_with_one_side_is_refused(drop):
    with pytest.raises(ValueError, match="algo.drop.*between 0 and 1, 0.1"):
        learner(drop=drop)
    learner(drop=drop, want=())  # nothing is told, so nothing is dropped


def test_a_draft_learns_the_same_plans():
    algo, batch = learner(kind=DraftedPolicy), windows()
    obs, plan, inside, strength, told, _, _ = given(algo, batch)
    wanted = (algo.policy.drafted(obs, strength, told) - plan).square()
    wanted = algo.mean(wanted, inside).detach()
    loss = algo.draft_loss(algo.policy, obs, plan, inside, strength, told).detach()
    assert float(loss) == pytest.approx(float(wanted))
    before = [p.clone() for p in algo.policy.draft.parameters()]
    metrics = algo.update(batch)
    assert set(metrics) == {"policy/loss", "policy/draft_loss"}
    assert not any(map(torch.equal, before, algo.policy.draft.parameters()))


def test_the_average_that_is_deployed_follows_by_its_rate():
    algo, batch = learner(ema_rate=0.3), windows()
    old = [p.clone() for p in algo.average.parameters()]
    algo.update(batch)
    for before, lead, now in zip(
        old, algo.policy.parameters(), algo.average.parameters(), strict=True
    ):
        assert torch.allclose(now, before + 0.3 * (lead - before), atol=1e-7)
    obs = batch.obs[:4]
    noise = algo.average.start(4, torch.Generator().manual_seed(5))
    deployed = algo.deploy(obs, torch.Generator().manual_seed(5))
    assert torch.equal(deployed, algo.average.act(obs, noise))


@pytest.mark.learns
def test_a_plan_that_is_asked_for_much_acts_as_those_windows_did():
    """Half of the windows act 0.8 and go up, the others -0.8 and down: the state tells neither."""
    algo, generator = learner(run_updates=400, ema_rate=0.02), torch.Generator().manual_seed(1)
    for _ in range(400):
        side = torch.randint(0, 2, (128, 1), generator=generator).float()
        obs = torch.randn((128, STATE), generator=generator)
        action = (1.6 * side - 0.8)[:, None].expand(-1, T, -1)
        ahead = torch.arange(T)[None, :, None]
        state = obs[:, None] + ahead * action
        algo.update(
            Windows(obs, action, torch.ones(128, T, dtype=torch.bool), state, 0.25 + 0.5 * side)
        )
    obs = torch.randn((200, STATE), generator=generator)
    found = {}
    for want in (0.75, 0.25):
        algo.average.net.want.fill_(want)
        noise = algo.average.start(200, generator)
        plan = algo.average.plan(obs, noise)
        found[want] = plan[..., STATE:].mean().item()
        rise = plan[:, 1:, :STATE] - plan[:, :-1, :STATE]  # where these actions lead
        assert float(rise.mean()) == pytest.approx(found[want], abs=0.15)
    assert found[0.75] > 0.6 and found[0.25] < -0.6
    algo.average.net.told_of.fill_(0)
    mixed = algo.deploy(obs, generator)
    assert 0.3 < (mixed > 0).float().mean() < 0.7


# ---- what it reads --------------------------------------------------------------------------


def test_another_source_is_refused():
    class Plain:
        """A source without states."""

    algo = learner()
    with pytest.raises(RheoError, match="source: Plan learns from windows of states"):
        algo.read(Plain())
    algo.read(Source())

    class Judged(Source):
        """A source of people's comparisons."""

        judged = "c.npz"

    with pytest.raises(RheoError, match="source.judged=c.npz.*by algo=align"):
        algo.read(Judged())
    learner("align").read(Judged())


# ---- strengths from pairs -------------------------------------------------------------------


def pairs(batch):
    """The batch with the signs of its labels, half a batch apart."""
    gap = batch.strength - batch.strength.roll(len(batch.obs) // 2, 0)
    return batch._replace(more=gap.sign())


def linear(rows, seed):
    """Windows whose labels are means of two linear functions of their steps."""
    batch = windows(rows, seed=seed)
    inside = batch.inside[..., None].float()
    steps = torch.cat([batch.state, batch.action], -1)
    direction = torch.tensor([[1.0, 0.5], [-2.0, 0.3], [0.5, -1.5]])
    return batch._replace(strength=((steps @ direction) * inside).sum(1) / inside.sum(1))


@pytest.mark.learns
def test_strengths_of_a_linear_attribute_are_in_its_order():
    """Of noiseless comparisons: the ranks of other windows, some way apart, are all right."""
    algo = learner("align", strength_lr=0.02, strength_depth=0, want=(1.0, 1.0))
    for k in range(300):
        algo.update(pairs(linear(256, k)))
    batch = linear(400, 1000)
    found = algo.value(batch)
    for k in range(2):
        amount, apart = batch.strength[:, k], list[int]()
        for row in amount.argsort().tolist():
            if not apart or amount[row] > amount[apart[-1]] + 0.2:
                apart.append(row)
        assert len(apart) > 15
        assert found[apart, k].diff().min() > 0  # a rank correlation of 1


def test_the_loss_of_pairs_is_bradley_and_terrys():
    algo = learner("align", want=(1.0, 1.0))
    value = torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.5, 0.0], [-1.0, 5.0]])
    more = torch.tensor([[1.0, 0.0], [-1.0, -1.0], [-1.0, 0.0], [1.0, 1.0]])
    loss, right = algo.strength_loss(value, more)
    gaps = torch.tensor([0.5, -3.0, 2.0])  # more less less: (1, .5), (-1, 2), (5, 3)
    assert float(loss) == pytest.approx(float(torch.log1p((-gaps).exp()).mean()))
    assert float(right) == pytest.approx(2 / 3)


def test_a_strength_is_a_rank_among_the_last_windows(monkeypatch):
    monkeypatch.setattr(align, "REMEMBERED", 20)
    algo = learner("align")
    first, second = windows(rows=14, seed=1), windows(rows=14, seed=2)
    algo.note(first)
    values = algo.value(first)[:, 0]
    wanted = [((values < v).sum() + 0.5 * (values == v).sum()) / 14 for v in values]
    assert algo.strengths(first)[:, 0].tolist() == pytest.approx([float(w) for w in wanted])
    algo.note(second)
    values = torch.cat([values, algo.value(second)[:, 0]])[-20:]
    wanted = [((values < v).sum() + 0.5 * (values == v).sum()) / 20 for v in values[-14:]]
    assert algo.strengths(second)[:, 0].tolist() == pytest.approx([float(w) for w in wanted])


def test_pairs_teach_strengths_alone_and_the_rest_plans_alone():
    algo, batch = learner("align"), windows()

    def state():
        return {
            name: [p.clone() for p in getattr(algo, name).parameters()]
            for name in ("attributes", "policy", "average")
        }

    def same(one, two):
        return {name: all(map(torch.equal, one[name], two[name])) for name in one}

    begin = state()
    assert set(algo.update(pairs(batch))) == {"strength/loss", "strength/accuracy"}
    middle = state()
    assert same(begin, middle) == {"attributes": False, "policy": True, "average": True}
    assert set(algo.update(batch)) == {"policy/loss"}
    assert same(middle, state()) == {"attributes": True, "policy": False, "average": False}


def test_plans_are_told_the_strengths_of_the_network_and_not_the_labels():
    algo, batch = learner("align"), windows()
    assert not torch.equal(algo.strengths(batch), batch.strength)
    algo.note(batch)
    kept = algo.validate(batch, torch.Generator().manual_seed(0))["val/loss"]
    other = batch._replace(strength=torch.rand(ROWS, 1))
    assert algo.validate(other, torch.Generator().manual_seed(0))["val/loss"] == kept


def test_windows_without_labels_are_told_the_strengths_too():
    algo, batch = learner("align"), windows()._replace(strength=None)
    algo.update(batch)
    assert set(algo.validate(batch, torch.Generator().manual_seed(0))) == {"val/loss"}


def test_attributes_without_pairs_or_a_wish_are_refused():
    class Single(Source):
        """A source whose windows come one by one."""

        pair_batches = 0

    with pytest.raises(RheoError, match="source.pair_batches=0.*set it to 1000"):
        learner("align").read(Single())
    with pytest.raises(ValueError, match=r"policy.want=\[\].*use algo=plan"):
        learner("align", want=())
