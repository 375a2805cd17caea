"""The top-level keys of a configuration, with the types of their values."""

NODE = "dict | None"
TOP = {
    "algo": "dict",
    "policy": "dict",
    "critic": NODE,
    "source": "dict",
    "env": NODE,
    "data": "str | list[str] | None",
    "init": "str | None",
    "init_part": "Literal['auto', 'policy', 'base']",
    "steps": "int",
    "seed": "int",
    "device": "str",
    "name": "str | None",
    "log_every": "int",
    "eval_every": "int",
    "save_every": "int",
    "episodes": "int",
    "limits": "dict",
    "horizon": "int",
    "fast": "Literal['off', 'precision', 'compile'] | bool",
    "threads": "int",
    "recipe": "str | dict | None",
    "config_dir": "list[str]",
}
# first parts of the keys that may follow a run's name
OPTIONS = (*TOP, "ref_min", "ref_max", "steer")
