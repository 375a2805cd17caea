"""Trackers of experiments behind one protocol: Weights & Biases, Trackio, MLflow.

They live in a process of their own (tracker_process.py), so whatever one of them does with signals,
threads, standard output or the end of its process is not the run's. Each package is imported when
its tracker begins.
"""

import importlib
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from rheo.ranges import Positive

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # how a run came to its end
PARAMETERS = 100  # that MLflow takes at once


class About(NamedTuple):
    """What a tracker is told of a run before its first row."""

    name: str  # of the run's folder
    group: str | None  # the sweep that it is of, or what the user typed
    folder: str  # where a tracker may leave files, inside of the run's, absolute
    config: dict[str, Any]  # composed
    facts: dict[str, Any]  # versions, commit, command
    id: str | None  # that the tracker gave it at an earlier start; None: it is new


class Service(Protocol):
    """A tracker. Whatever a method raises ends this tracker, and never the run."""

    def begin(self, about: About) -> tuple[str, str]:
        """Starts a run there or goes on with it: its id, and where a person finds it."""
        ...

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends a row; steps never go back, and several rows may be of one step."""
        ...

    def end(self, how: str, final: Mapping[str, float]) -> None:
        """Ends it with the figures of the last evaluation. how: from rheo.ranges import Positive

        FINISHED, STOPPED or FAILED."""
        ...


class Wandb:
    """Weights & Biases.

    Args:
        project: Project whose table the run is a row of.
        entity: User or team that the project is of; null: your own.
        group: Name under which runs are shown together; null: the sweep's.
        mode: Where rows go: online, or offline, files in the run's folder for `wandb sync`; null:
            as WANDB_MODE says, else online.
        timeout: Seconds without an answer after which the run goes on without this tracker.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        mode: Literal["online", "offline"] | None,
        timeout: Positive,
    ) -> None:
        self.project, self.entity, self.mode, self.timeout = project, entity, mode, timeout

    def begin(self, about: About) -> tuple[str, str]:
        """Starts or resumes: rows of steps that the server has are left out by it as well."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = importlib.import_module("wandb")

        settings = wandb.Settings(
            **{"console": "off", "silent": True, "init_timeout": 0.9 * self.timeout},
            **{"disable_git": True, "disable_code": True, "x_stats_pid": os.getppid()},
        )
        self.run = wandb.init(
            **{"project": self.project, "entity": self.entity, "group": about.group},
            **{"name": about.name, "id": about.id, "resume": "allow", "dir": about.folder},
            **{"mode": self.mode, "settings": settings, "reinit": "return_previous"},
            config={**about.config, "rheo": about.facts},
        )
        return self.run.id, self.run.url or str(Path(self.run.dir).parent)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends a row."""
        self.run.log(dict(numbers), step=step)

    def end(self, how: str, final: Mapping[str, float]) -> None:
        """Ends the run; one that was stopped is shown as preempted."""
        self.run.summary.update({f"final/{key}": value for key, value in final.items()})
        if how == STOPPED:
            self.run.mark_preempting()
        self.run.finish(exit_code=0 if how == FINISHED else 1)


class Trackio:
    """Trackio, a table on this machine or in a Space of Hugging Face.

    Args:
        project: Project whose table the run is a row of.
        space_id: Space of Hugging Face to send to, as USER/SPACE; null: a table on this machine
            (`trackio show`).
        group: Name under which runs are shown together; null: the sweep's.
        timeout: Seconds without an answer after which the run goes on without this tracker.
    """

    def __init__(
        self, *, project: str, space_id: str | None, group: str | None, timeout: Positive
    ) -> None:
        self.project, self.space_id = project, space_id

    def begin(self, about: About) -> tuple[str, str]:
        """Starts or resumes. A run is known there by its name, so a new one gets its own."""
        for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            os.environ.setdefault(name, "0" if name.startswith("GRADIO") else "1")
        trackio = importlib.import_module("trackio")
        name = about.id or f"{about.name}-{secrets.token_hex(4)}"
        self.run = trackio.init(
            **{"project": self.project, "name": name, "group": about.group, "resume": "allow"},
            **{"space_id": self.space_id, "embed": False},
            config={**about.config, "rheo": about.facts},
        )
        return name, self.space_id or f"trackio show --project {self.project}"

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends a row."""
        self.run.log(dict(numbers), step=step)

    def end(self, how: str, final: Mapping[str, float]) -> None:
        """Sends the last evaluation as a row, and waits until all is there."""
        self.run.log({f"final/{key}": value for key, value in final.items()})
        self.run.finish()


class Mlflow:
    """MLflow.

    Args:
        project: Experiment that the run is of.
        uri: Tracking server or store (http://..., sqlite:///FILE); null: as MLFLOW_TRACKING_URI
            says, else mlflow.db beside the run's folder.
        group: Value of the run's tag group, by which runs are found together; null: the sweep's
            name.
        timeout: Seconds without an answer after which the run goes on without this tracker.
    """

    def __init__(
        self, *, project: str, uri: str | None, group: str | None, timeout: Positive
    ) -> None:
        self.project, self.uri = project, uri

    def begin(self, about: About) -> tuple[str, str]:
        """Starts or resumes a run of the experiment, with the configuration as parameters."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = importlib.import_module("mlflow")
        beside = f"sqlite:///{Path(about.folder).parents[1] / 'mlflow.db'}"
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or beside
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        if about.id is not None:
            self.client.update_run(about.id, status="RUNNING")
            self.id = about.id
            return self.id, uri
        known = self.client.get_experiment_by_name(self.project)
        place = known.experiment_id if known else self.client.create_experiment(self.project)
        tags = {"group": about.group} if about.group else {}
        tags |= {f"rheo.{key}": str(value) for key, value in flat(about.facts).items()}
        self.id = self.client.create_run(place, run_name=about.name, tags=tags).info.run_id
        self.parameters(flat(about.config))
        return self.id, uri

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Sends the values of a configuration."""
        entities = importlib.import_module("mlflow.entities")
        rows = [entities.Param(key, str(value)) for key, value in values.items()]
        for start in range(0, len(rows), PARAMETERS):
            self.client.log_batch(self.id, params=rows[start : start + PARAMETERS])

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends a row."""
        entities = importlib.import_module("mlflow.entities")
        now = int(1000 * time.time())
        rows = [entities.Metric(key, value, now, step) for key, value in numbers.items()]
        self.client.log_batch(self.id, metrics=rows)

    def end(self, how: str, final: Mapping[str, float]) -> None:
        """Ends the run; one that was stopped is KILLED there."""
        self.add(0, {f"final/{key}": value for key, value in final.items()})
        status = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}[how]
        self.client.set_terminated(self.id, status)


def flat(tree: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{within}{key}.") if inner else {f"{within}{key}": value}
    return found
