"""The environments of these tests, registered under ids of their own."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("worlds", Path(__file__).with_name("worlds.py"))
assert spec is not None
assert spec.loader is not None
worlds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worlds)
worlds.register()
