"""Reference returns that turn a return into the 0-100 score of the D4RL literature."""

# (random, expert) returns from Farama-Foundation/D4RL d4rl/infos.py; they belong to the v4 physics
# and rewards. The v5 environments are other tasks (Walker2d-v5 has another model, all drop the
# healthy reward at termination), so no score is given there.
REFERENCES = {
    "Hopper-v4": (-20.272305, 3234.3),
    "HalfCheetah-v4": (-280.178953, 12135.0),
    "Walker2d-v4": (1.629008, 4592.3),
    "Ant-v4": (-325.6, 3879.7),
}


def normalized_score(env_id: str, ret: float) -> float | None:
    """100 (return - random) / (expert - random), or None where no reference is known."""
    if env_id not in REFERENCES:
        return None
    low, high = REFERENCES[env_id]
    return 100.0 * (ret - low) / (high - low)
