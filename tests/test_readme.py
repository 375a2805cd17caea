"""The worked examples of README and docs run as printed, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from rheo.scripts.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "".join(page.read_text() for page in PAGES)


def blocks():
    """Code blocks that name a file, by that name."""
    found = re.findall(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", TEXT, re.DOTALL)
    return dict(found)


def anchors(page):
    """What a link may name behind #: its headings outside code, in lower case with hyphens."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    for file, anchor in links:
        target = page.parent / file if file else page
        assert target.is_file(), f"{page.name}: {file}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {file}#{anchor}"


@pytest.mark.parametrize("what", ["algo=greedy", "policy=theirs", "algo=sac env=gym"])
def test_a_worked_example_trains_and_evaluates(tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    for name, text in blocks().items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    command = re.search(rf"^rheo (train --config-dir mine {what} .*)$", TEXT, re.MULTILINE)
    assert command
    words = [w for w in command[1].split() if not w.startswith(("steps=", "source.warmup="))]
    small = ["steps=600", "source.warmup=200", "episodes=2", "log_every=200", "eval_every=300"]
    assert main([*words, *small, "name=example"]) == 0
    assert main(["eval", "example", "--config-dir", "mine", "episodes=3"]) == 0
    assert "3 episodes" in capsys.readouterr().out


def test_the_page_on_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("steps=5000", "steps=300"), {})
    path, total, mean, low = capsys.readouterr().out.splitlines()[-1].split()
    assert path == "runs/pole" and float(total) >= 1 and float(low) <= float(mean)


@pytest.mark.parametrize("verb", ["train", "eval", "resume", "sweep", "doctor", "bench"])
def test_every_verb_that_the_readme_shows_exists(verb):
    from rheo.scripts.cli import VERBS

    assert re.search(rf"^rheo {verb}\b", README, re.MULTILINE)
    assert verb in VERBS


def test_every_shipped_algorithm_has_a_row_in_the_methods_table():
    algos = {file.stem for file in (ROOT / "configs" / "algo").glob("*.yaml")}
    table = README.partition("## Methods")[2].partition("## Add")[0]
    assert all(f"algo={name}" in table for name in algos)
