"""How the settings of a run made by an earlier version read today."""

from typing import Any

# where classes are today that older runs name elsewhere
MOVED = {
    "rheo.envs.datasets.Mixed": "rheo.envs.mixed.Mixed",
    "rheo.algos.velocity.Reverse": "rheo.algos.reverse.Reverse",
    "rheo.policies.deterministic.Deterministic": "rheo.policies.heads.Deterministic",
    "rheo.policies.gaussian.Gaussian": "rheo.policies.heads.Gaussian",
    "rheo.policies.gaussian.TanhGaussian": "rheo.policies.heads.TanhGaussian",
}
CONTRAST = {"condition": [], "contrast_coef": 0.0, "contrast_beta": 1.0}
ANNEALING = {"anneal_moves": 4, "anneal_step": 0.5}  # of a proposal that older runs lack
# keys without which older runs were made, with the values that do what those runs did
ADDED = {
    "rheo.algos.awm_gae.AWMGAE": {"reduction": "mean", "error_max": None, "pulls": []},
    "rheo.algos.awm_q.AWMQ": {
        **{"deviation": "batch", "relative": False, "diversity": False, "pulls": []},
    },
    "rheo.algos.bc.BC": {"draws": 1, **CONTRAST},
    "rheo.algos.bc.BCGaussian": CONTRAST,
    "rheo.algos.dppo.DPPO": {"pulls": []},
    "rheo.algos.dsrl.DSRL": {
        **{"distill_noises": 1, "base_cache": 0, "relative": False, "ema_rate": 1.0},
    },
    "rheo.algos.expo.EXPO": {"base_cache": 0, "relative": False},
    "rheo.algos.flame.FLAME": ANNEALING,
    "rheo.algos.mirror.Mirror": {"target_ess": None, "pulls": []},
    "rheo.algos.parl.PARL": {"proposals": "best", "weight": "even"},
    "rheo.algos.prefer.Prefer": {"pulls": []},
    "rheo.algos.reinflow.ReinFlow": {"pulls": []},
    "rheo.algos.rfm.RFM": {
        **{"control": "ridge", "walls": 1.0, "start_candidates": 1, "choice_temperature": 0.0},
        **{"deploy_temperature": 0.0, "target_noise": 1.0, **ANNEALING},
    },
    "rheo.algos.rfm_offline.RFMOffline": {
        **{"act_candidates": 1, "explore_noise": 0.0, "temperature_rule": "fixed"},
    },
    "rheo.algos.reverse.Reverse": {
        **{"control": "ridge", "walls": 1.0, "start_candidates": 1, "choice_temperature": 0.0},
        **ANNEALING,
    },
    "rheo.envs.datasets.Dataset": {
        **{"action_scale": "recorded", "filter": None, "big": False},
    },
    "rheo.envs.datasets.Transitions": {
        **{"n_step": 1, "action_scale": "recorded", "filter": None, "big": False},
    },
    "rheo.envs.mixed.Mixed": {"shown_share": 0.0, "shown_until": 50_000},
    "rheo.envs.sources.Replay": {"n_step": 1},
    "rheo.envs.suites.chunked": {
        **{"workers": "auto", "step_timeout": 120.0, "restarts": 3, "randomise": {}, "cost": {}},
    },
    "rheo.policies.exported.Exported": {"sha256": None},
    "rheo.policies.fewstep.FewStepPolicy": {"betas": "cosine", "grid": "uniform"},
    "rheo.policies.flow.FlowPolicy": {"betas": "cosine", "grid": "uniform"},
    "rheo.policies.noise.NoiseNet": {"std_power": 1.0},
}


def complete(node: Any) -> None:
    """Writes into a run's configuration today's names of classes, and what it did without keys."""
    for value in node.values():
        if isinstance(value, dict):
            complete(value)
    target = node.get("_target_")
    if not isinstance(target, str):  # nothing is called; what else it may be is judged later
        return
    node["_target_"] = target = MOVED.get(target, target)
    for key, before in ADDED.get(target, {}).items():
        node.setdefault(key, before)
