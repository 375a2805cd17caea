"""Reference returns that turn a return into the 0-100 score of the D4RL literature."""

# (random, expert) returns from Farama-Foundation/D4RL d4rl/infos.py.
#
# Locomotion: they belong to the v4 physics and rewards. The v5 environments are other tasks
# (Walker2d-v5 has another model, all drop the healthy reward at termination), so no score is given
# there.
#
# Adroit: v1 pays +0.1 where D4RL pays -0.1 for every metre between hand and object, which adds 8 to
# 14 to a random return (measured, 5 episodes each): less than half a point. AdroitHandPen is left
# out: D4RL ends it after 100 steps and the package after 200. D4RL calls an episode solved when
# more than 25 of its steps are.
#
# Mazes are left out: D4RL's maze2d and antmaze end or pay otherwise than PointMaze and AntMaze.
REFERENCES = {
    "Hopper-v4": (-20.272305, 3234.3),
    "HalfCheetah-v4": (-280.178953, 12135.0),
    "Walker2d-v4": (1.629008, 4592.3),
    "Ant-v4": (-325.6, 3879.7),
    **dict.fromkeys(("kitchen/complete-v0", "kitchen/partial-v0", "kitchen/mixed-v0"), (0.0, 4.0)),
    "AdroitHandDoor-v1": (-56.512833, 2880.5693087298737),
    "AdroitHandHammer-v1": (-274.856578, 12794.134825156867),
    "AdroitHandRelocate-v1": (-6.425911, 4233.877797728884),
}


def scaled(ret: float, low: float, high: float) -> float:
    """100 (return - low) / (high - low)."""
    return 100.0 * ((ret - low) / (high - low))


def normalized_score(env_id: str, ret: float) -> float | None:
    """100 (return - random) / (expert - random), or None where no reference is known."""
    if env_id not in REFERENCES:
        return None
    return scaled(ret, *REFERENCES[env_id])
