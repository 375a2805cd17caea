"""`rheo completion bash|zsh`: what the shell asks when Tab is pressed. Without torch and Hydra."""

from collections.abc import Sequence
from pathlib import Path

from rheo.errors import RheoError

from .config.top import HOME, TOP
from .store.zoo import recipes

SHELLS = {
    "bash": """\
_rheo() {
  local cur=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT}
  # bash splits words at "=", of which a choice is the part behind
  [[ $cur == "=" ]] && cur=
  mapfile -t COMPREPLY < <(compgen -W "$(rheo completion words "$line" 2>/dev/null)" -- "$cur")
  [[ ${COMPREPLY[0]} == *= || ${COMPREPLY[0]} == */ ]] && compopt -o nospace
}
complete -o default -F _rheo rheo
""",
    "zsh": """\
#compdef rheo
_rheo() {
  local word=${words[CURRENT]} found
  found=(${(f)"$(rheo completion words "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
  if [[ $word == *=* ]]; then
    compadd -P "${word%%=*}=" -S '' -- $found
  else
    compadd -S '' -- ${(M)found:#*=}
    compadd -- ${found:#*=}
  fi
}
compdef _rheo rheo
""",
}
USAGE = {
    "completion": """\
usage: rheo completion bash|zsh    what makes the shell complete verbs, keys, choices and runs
       bash: echo 'eval "$(rheo completion bash)"' >> ~/.bashrc
       zsh:  echo 'eval "$(rheo completion zsh)"' >> ~/.zshrc   (below compinit)"""
}
GROUPS = ("algo", "policy", "policy/net", "critic", "eye", "source", "env", "recipe", "tracker")
TAKING_RUNS = (
    *("eval", "resume", "compare", "play", "export", "serve", "collect"),
    "checkpoint",
)
KEYS = {  # verb -> its own keys
    "eval": ("episodes", "seed", "env", "steer", "ref_min", "ref_max"),
    "play": ("out", "episodes", "seed", "fps", "speed", "size", "camera", "window"),
    "export": ("out", "units"),
    "serve": ("port", "host", "token", "seed", "hold", "clients", "rows", "frame", "delay", "check")
    + ("hz",),
    "collect": ("out", "env", "steps", "episodes", "noise", "set", "layout", "seed", "actors")
    + ("states", "width", "act"),
    "compare": ("metric", "out", "curves", "columns", "group", "minutes", "reach", "with"),
    "replay": ("device", "threads"),
    "report": ("out", "metric", "with", "summaries"),
    "reproduce": ("seeds", "out", "dry", "summaries"),
    "resume": ("steps", "data", "device", "log_every", "eval_every", "save_every", "restart")
    + ("without_damaged",),
}
VALUES = {
    **{"device": ("cpu", "cuda", "auto"), "fast": ("off", "precision", "compile", "graph")},
    "precision": ("float32", "bf16"),
    **{"window": ("true", "false"), "dry": ("true",), "restart": ("true",)},
    "without_damaged": ("true",),
    "units": ("environment", "unit"),
    **{"hold": ("last", "neutral"), "check": ("true",), "act": ("deployed", "explored")},
    "set": ("random", "medium", "medium_replay", "medium_expert", "expert", "scripted"),
}
VERBS_OF_RUNS = ("train", "sweep", "suite", "demo")
FIRST = {
    **{"zoo": ("build",), "checkpoint": ("verify",), "collect": ("branches",)},
    "data": ("info", "check", "convert", "filter", "corrupt", "repair", "fetch"),
    "completion": ("bash", "zsh"),
}


def asked(argv: Sequence[str]) -> list[str]:
    """`rheo completion`: a shell, or `words` and the line so far. Raises RheoError."""
    wanted = list(argv)
    if wanted[:1] == ["words"] and len(wanted) == 2 or len(wanted) == 1 and wanted[0] in SHELLS:
        return wanted
    raise RheoError(USAGE["completion"])


def main(wanted: list[str]) -> int:
    """Prints a shell's script, or the words that may come next."""
    if wanted[0] in SHELLS:
        print(SHELLS[wanted[0]], end="")
        return 0
    from .cli import VERBS  # which imports this module's reader

    line = wanted[1].split()
    if not wanted[1].endswith(tuple(" \t")) and len(line) > 1:
        *line, word = line
    else:
        word = ""
    print("\n".join(follow(line[1:], word, list(VERBS))))
    return 0


def follow(before: Sequence[str], word: str, verbs: Sequence[str]) -> list[str]:
    """What `word` may become after the words `before` it: of key=value the value alone."""
    if not before:
        return starting(verbs, word)
    verb, (key, equals, value) = before[0], word.partition("=")
    if equals:
        return starting(choices(verb, key), value)
    found = [f"{name}=" for name in keys(verb)]
    if verb in TAKING_RUNS:
        found += runs()
    if verb == "replay":
        found += map(str, sorted(Path("runs").glob("*/broken/[0-9]*")))
    if verb == "zoo":
        found = list(recipes())
    if verb == "info":
        found = [*GROUPS, "data", "run", *(f"{group}=" for group in GROUPS)]
    return starting([*found, *(FIRST.get(verb, ()) if len(before) == 1 else ())], word)


def starting(words: Sequence[str], start: str) -> list[str]:
    """The words that begin so."""
    return [word for word in words if word.startswith(start)]


def keys(verb: str) -> list[str]:
    """The keys of a verb."""
    if verb in VERBS_OF_RUNS:
        return [*TOP, "policy/net", *(["dry"] if verb == "train" else [])]
    return list(KEYS.get(verb, ()))


def choices(verb: str, key: str) -> list[str]:
    """The values that a key may have, as far as they can be listed."""
    if key in GROUPS:
        return [file.stem for file in sorted((HOME / key).glob("*.yaml")) if file.stem != "base"]
    if key == "init":
        return runs()
    return list(VALUES.get(key, ()))


def runs() -> list[str]:
    """Names of the runs here."""
    return sorted(file.parent.name for file in Path("runs").glob("*/config.yaml"))
