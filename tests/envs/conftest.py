"""The environments of these tests, registered under ids of their own, and shared writers."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


beside("worlds").register()


@pytest.fixture(scope="session")
def foreign() -> ModuleType:
    """Writers of LeRobot, PushT, ALOHA and ManiSkill data."""
    return beside("foreign_files")
