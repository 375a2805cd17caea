"""README and docs: their made parts are up to date, links lead somewhere, and examples run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import reference
import yaml
from shipped import small

from rheo import errors
from rheo.errors import RheoError
from rheo.scripts.cli import ASKED, VERBS, main, programs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
OWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [*OWN, *sorted(DOCS.rglob("*.md"))]
TEXT = "".join(page.read_text() for page in PAGES)
SHORT = [*sorted((DOCS / "start").glob("*.md")), *sorted((DOCS / "methods").glob("*.md"))]
STORY = ("first_run", "own_data", "fine_tune", "steer", "deploy")  # each goes on with the last one
SLOW = ("rheo doctor", "rheo demo")
ATTRIBUTES = ("policy.obs_parts", "policy.action_low", "policy.action_high")  # in Python
# what makes a run of a page short; a clone keeps a size that its heirs can be given
BRIEF = {"steps": 40, "log_every": 20, "eval_every": 40, "save_every": 40, "episodes": 2}
LESS = {"source.warmup": 40, "source.decisions": 16, "env.num_envs": 4, "algo.gate": 0}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def plain(text: str) -> str:
    """A page without code blocks, tables and what is made."""
    text = reference.PART.sub("", text)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "    ")))


def blocks() -> dict[str, str]:
    """Code blocks that name a file, by that name."""
    found = re.findall(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", TEXT, re.DOTALL)
    return dict(found)


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's unnamed code blocks, without their comments."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for language, block in found:
        for line in block.splitlines():
            if not language and line.startswith("rheo "):
                yield re.split(r"\s{2,}#|\s+# ", line)[0].strip()


def anchors(page: Path) -> set[str]:
    """What a link may name behind #: its headings outside code, in lower case with hyphens."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", one.lower()).replace(" ", "-") for one in headings}


# ---- what is made --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", reference.pages(), ids=name_of)
def test_what_is_made_of_a_page_is_what_its_sources_say(page: Path) -> None:
    text = page.read_text()
    assert reference.filled(text) == text, "python tests/reference.py writes it anew"


def test_a_changed_number_of_the_matrix_is_seen() -> None:
    first = re.search(r"\| `reinflow` \|.*", README)
    assert first
    changed = README.replace(first[0], first[0].replace("3,260", "3,261"))
    assert changed != README and reference.filled(changed) == README


def test_every_algorithm_has_a_page_with_its_keys() -> None:
    listed = " ".join(re.findall(r"<!-- made: keys (.*?) -->", TEXT)).split()
    assert sorted(listed) == sorted(file.stem for file in (ROOT / "configs/algo").glob("*.yaml"))


def test_every_metric_of_an_algorithm_is_told_on_a_page_of_methods() -> None:
    code = "".join(file.read_text() for file in (ROOT / "algos").glob("*.py"))
    metrics = set(re.findall(r'"((?:policy|critic|rollout|base|val)/[a-z_]+)"', code))
    told = "".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    hidden = {"policy/ratio_error"}  # becomes policy/first_ratio_error
    assert sorted(one for one in metrics - hidden if f"`{one}`" not in told) == []


def test_every_key_that_a_page_names_exists() -> None:
    known = set(re.findall(r"^\| `([\w.]+)` \|", TEXT, re.MULTILINE))
    known |= {key.rpartition(".")[0] for key in known}
    groups = "algo|policy|critic|source|eye|env"
    for page in [*SHORT, *sorted((DOCS / "reference").glob("*.md"))]:
        named = re.findall(rf"(?<![\w./])((?:{groups})\.[a-z_.]*[a-z_])(?=[=` ])", page.read_text())
        free = ("env.options", "env.id", "env.randomise", "env.cost", "source.", "algo.steer.")
        free = (*free, *ATTRIBUTES)
        wrong = [key for key in named if key not in known and not key.startswith(free)]
        assert wrong == [], page.name


def test_every_exit_code_is_told() -> None:
    table = re.findall(r"^\| ([\d, ]+) \|", page_text("reference/exit_codes"), re.MULTILINE)
    told = {int(code) for cell in table for code in cell.split(",")}
    assert told >= {0, 1, errors.USER, errors.MACHINE, errors.NUMERICS, errors.REQUEUE, 130}


def page_text(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


# ---- what a reader meets -------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", reference.PART.sub(
        lambda found: found[3], page.read_text()))  # fmt: skip
    for file, anchor in links:
        target = page.parent / file if file else page
        assert target.is_file(), f"{page.name}: {file}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {file}#{anchor}"


def test_every_page_of_a_chapter_is_on_the_site_once() -> None:
    found = re.findall(r"(\S+\.md)", (ROOT / "mkdocs.yml").read_text())
    here = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert len(found) == len(set(found)) and set(found) <= set(here)
    assert [page for page in here if "/" in page and page not in found] == []
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["strict"] is True


def test_the_readme_is_short_and_of_words() -> None:
    assert len(README.splitlines()) <= 120
    words = re.sub(r"\]\([^)]*\)", "]", plain(README)).split()
    digits = [word for word in words if re.search(r"\d", word)]
    assert len(digits) <= 0.05 * len(words), digits
    assert (DOCS / "film.gif").stat().st_size <= 600_000


@pytest.mark.parametrize("page", SHORT, ids=name_of)
def test_no_paragraph_is_a_wall(page: Path) -> None:
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d\. )", plain(page.read_text())):
        assert len(paragraph.split()) <= 90, paragraph


def test_every_question_is_answered_by_a_page_or_a_command() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", page_text("start/questions"), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 39))
    assert all("](" in answer or "`rheo " in answer for _, _, answer in rows)


# ---- commands ------------------------------------------------------------------------------------


def test_every_verb_that_a_page_shows_exists() -> None:
    shown = {(page.name, line.split()[1]) for page in PAGES for line in commands(page)}
    assert {verb for _, verb in shown} >= {"train", "eval", "play", "export", "compare", "sweep"}
    assert {one for one in shown if one[1] not in VERBS and not one[1].startswith("-")} == set()


@pytest.mark.parametrize("page", sorted((DOCS / "start").glob("*.md")), ids=name_of)
def test_words_of_a_page_to_start_with_are_understood(page: Path) -> None:
    for line in commands(page):
        verb, *words = shlex.split(line)[1:]
        if verb in ("train", "resume", "demo"):  # asks for files: run below, or its keys
            continue
        try:
            getattr(programs(ASKED[verb][0]), ASKED[verb][1])(words)
        except RheoError as error:  # a file or run that is not here is no fault of the words
            assert re.search(
                r"no such|not found|does not exist|no run|is no file|neither", str(error)
            )


def brief(words: list[str]) -> list[str]:
    """Words of `rheo train` that take a second."""
    algo = next(word.partition("=")[2] for word in words if word.startswith("algo="))
    given = {word.partition("=")[0] for word in words}
    less = dict(word.split("=", 1) for word in small(algo) if "." in word)
    less = {key: value for key, value in less.items() if not key.startswith("policy.")}
    less |= {key: str(value) for key, value in LESS.items() if key in less}
    if "init" not in given:
        less["policy.net.width" if algo in ("bc", "iql", "rfm") else "policy.width"] = "16"
    less |= {key: str(value) for key, value in BRIEF.items()}
    kept = [word for word in words if word.partition("=")[0] not in less]
    return [*kept, *(f"{key}={value}" for key, value in less.items())]


def test_the_pages_to_start_with_run_one_after_the_other(
    drawing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", page_text("start/own_data"), re.DOTALL)
    assert code
    exec(code[1], {})
    assert main(["data", "check", "mine.npz"]) == 0
    for name in STORY:
        for line in commands(DOCS / "start" / f"{name}.md"):
            verb, *words = shlex.split(line)[1:]
            if line in SLOW:
                continue
            if verb == "train" and "dry=true" not in words:
                words = brief(words)
            words = [re.sub(r"^(episodes|steps)=(50|20|8000)$", r"\1=60", word) for word in words]
            if verb == "eval":
                words = [re.sub(r"^episodes=.*", "episodes=2", word) for word in words]
            assert main([verb, *words]) == 0, line
    made = ("first.gif", "mine.gif", "both.gif", "corrected.gif", "mine.pt2", "blind.pt2")
    assert all(Path(file).is_file() for file in made)


def test_one_reaches_a_film_of_ones_own_data_in_five_commands() -> None:
    first = re.search(r"^```\n(.*?)^```", page_text("start/own_data"), re.DOTALL | re.MULTILINE)
    assert first
    lines = first[1].splitlines()
    assert len(lines) == 5 and lines[0].startswith("pip install") and "rheo play" in lines[-1]


@pytest.mark.parametrize("what", ["algo=greedy", "policy=theirs", "algo=sac env=gym"])
def test_a_worked_example_trains_and_evaluates(tmp_path, monkeypatch, capsys, what) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in blocks().items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    command = re.search(rf"^rheo (train --config-dir mine {what} .*)$", TEXT, re.MULTILINE)
    assert command
    long = ("steps=", "source.warmup=", "name=")
    words = [word for word in command[1].split() if not word.startswith(long)]
    less = ["steps=160", "source.warmup=80", "episodes=2", "log_every=40", "eval_every=80"]
    assert main([*words, *less, "name=example"]) == 0
    assert main(["eval", "example", "--config-dir", "mine", "episodes=3"]) == 0
    assert "3 episodes" in capsys.readouterr().out


def test_the_page_on_python_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code = page_text("start/python").partition("```python\n")[2].partition("```")[0]
    exec(code.replace("steps=5000", "steps=300"), {})
    path, total, mean, low = capsys.readouterr().out.splitlines()[-1].split()
    assert path == "runs/pole" and float(total) >= 1 and float(low) <= float(mean)


def test_the_six_lines_of_the_readme_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code = README.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line]) <= 6
    exec(code.replace("steps=5000", "steps=300"), {})
    assert "eval/return" in capsys.readouterr().out
