"""The environments of these tests, registered under ids of their own, and shared writers."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def beside(file: str) -> ModuleType:
    """A module of this folder or below, which is no package."""
    path = Path(__file__).parent / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


beside("worlds.py").register()


@pytest.fixture(scope="session")
def foreign() -> ModuleType:
    """Writers of LeRobot, PushT, ALOHA and ManiSkill data."""
    return beside("data/foreign_files.py")
