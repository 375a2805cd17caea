"""What an algorithm's files set for its own source, where the user chose another one."""

from typing import Any

from . import schema

SHARED = "n_step"  # of both parts of a mixed source: the data set's follows the replay's


def keep_own(chosen: dict[str, Any], own: dict[str, Any], word: str) -> list[str]:
    """Gives the part of a mixed source that is of the kind of the algorithm's own its settings.

    chosen, own: the source's nodes as composed with the user's `word` (source=NAME) and without it.
    So a base that warms up by its own actions still does when recorded rows join, with the batch
    size and the n-step returns of the algorithm's file. Values set by hand come later and stay.
    Returns errors for settings that the chosen source has no place for.
    """
    if chosen["_target_"] == own["_target_"]:
        return []  # named by hand: that file's values are asked for
    known = schema.from_source(chosen["_target_"])
    strays = [key for key in own if key in chosen and key not in {*known.keys, *known.slots}]
    strays.remove("_target_")
    for key in strays:  # of the algorithm's file, meant for its own source
        del chosen[key]
    parts = {key: node for key, node in chosen.items() if isinstance(node, dict)}
    if "path" in chosen and own.get("kept_rows") is not None:
        return [
            f"{word}: this algorithm's replay keeps codes in place of actions, and recorded data "
            "hold actions, of which algo=dsrl_na learns; take that one, or source=mixed, where a "
            "base that is a flow is run backwards from them"
        ]
    part = next((key for key in parts if parts[key].get("_target_") == own["_target_"]), None)
    if part is None:
        name, names = own["_target_"].rpartition(".")[2], ", ".join(strays)
        text = (
            f"{word}: this algorithm learns from a source of its own ({name}, with its {names}), "
            "which this one has no place for; leave source= out, or choose another algorithm"
        )
        return [text] if strays else []
    parts[part] |= {key: value for key, value in own.items() if key != SHARED}
    chosen["batch_size"], chosen["replay"][SHARED] = own["batch_size"], own[SHARED]
    return []
