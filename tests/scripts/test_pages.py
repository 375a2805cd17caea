"""docs/bench: every page is what its summaries make of it, and no number is copied by hand."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest

from rheo.errors import RheoError
from rheo.scripts import pages
from rheo.scripts.cli import main
from rheo.scripts.config.compose import train as composed
from rheo.scripts.config.reproducing import SUMMARIES
from rheo.scripts.reproduce import needed
from rheo.scripts.summaries import Line, command_of, figures, lines_of, rows_of, text_of
from rheo.stats import of_means, wilson

DOCS = Path(__file__).parents[2] / "docs"
PAGES = pages.read(SUMMARIES)
MADE = pages.made(SUMMARIES)
ROWS = {name: row for page in PAGES for name, row in page.rows.items()}


def test_the_committed_pages_are_those_of_the_committed_summaries(tmp_path: Path) -> None:
    assert main(["report", f"summaries={SUMMARIES}", f"out={tmp_path}"]) == 0
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text() for file in (DOCS / "bench").glob("*.md")}
    assert list(made) and made.keys() == kept.keys()
    changed = [name for name, text in made.items() if kept[name] != text]
    assert not changed, "run: rheo report summaries=docs/bench/data out=docs/bench"


def test_every_row_is_on_a_page_and_every_number_is_in_one_cell() -> None:
    for page in PAGES:
        text = (DOCS / "bench" / f"{page.name}.md").read_text()
        suites = {section["rows"] for section in page.told["sections"] if "rows" in section}
        assert {name.partition("/")[0] for name in page.rows} == suites
        assert all(f"{name}: " in text for name in page.rows)
        if page.rows:
            cells = [cell.strip() for line in text.splitlines() if line.startswith("| ")
                     for cell in line.strip("|").split("|")[1:]]  # fmt: skip
            assert all(re.fullmatch(r"[a-zA-Z%.].*|-?[\d,]+(\.\d+)?|", cell) for cell in cells)


def test_links_of_bench_and_notes_lead_somewhere() -> None:
    for page in [*(DOCS / "bench").glob("*.md"), *(DOCS / "notes").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:)([^)#]+)#?([^)]*)\)", page.read_text())
        for file, anchor in links:
            target = page.parent / file
            assert target.is_file(), f"{page.name}: {file}"
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            named = [re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in heads]
            assert not anchor or anchor in named, f"{page.name}: {file}#{anchor}"


def test_heads_hold_no_figures() -> None:
    """Text that a hand wrote beside numbers that a program did."""
    for page in PAGES:
        told = [str(page.told.get("text", "")), *(s.get("text", "") for s in page.told["sections"])]
        words = re.sub(r"`[^`]*`|\]\([^)]*\)|[A-Z]\w*\d\w*", "", " ".join(told)).split()
        figured = [word for word in words if re.search(r"\d", word)]
        assert not figured, page.name


@pytest.mark.parametrize("name", [name for name in ROWS if name.endswith("hopper")][:7])
def test_a_row_from_scratch_is_composed_by_what_ships(name: str) -> None:
    words = command_of(ROWS[name], "0")
    assert words[0] == "train" and not needed(words, MADE)
    assert composed(words[1:])["steps"] == figures(ROWS[name]).frames


def test_what_commands_begin_with_is_listed() -> None:
    for name, row in ROWS.items():
        words = command_of(row, "0")
        bases = [word for word in words if word.startswith(("init=", "data="))]
        assert len(needed(words, MADE)) >= len(bases), name
    for one in MADE.values():
        assert bool(one.command) != bool(one.lacks), one.name


# ---- figures -------------------------------------------------------------------------------------


def line(seed: str = "", **more) -> Line:
    """A line of one row."""
    own: dict = {"metric": "return", "method": "m", "seed": seed} | more
    return Line(row="s/m/t", environment="E-v0", **own)


def test_several_seeds_have_student_s_interval_and_one_that_of_its_episodes() -> None:
    runs = [line(str(seed), mean=mean) for seed, mean in enumerate((1.0, 2.0, 6.0))]
    whole = line(seeds=3, mean=9.0, low=8.0, high=9.5, iqm=2.5)
    found = figures(rows_of([whole, *runs])["s/m/t"])
    assert (found.value, found.kind, found.seeds, found.iqm) == (3.0, "t", 3, 2.5)
    assert (found.low, found.high) == of_means(np.array([1.0, 2.0, 6.0]))
    one = figures(rows_of([line("0", mean=2.0, low=1.0, high=4.0, iqm=1.5)])["s/m/t"])
    assert (one.value, one.low, one.high, one.kind, one.iqm) == (2.0, 1.0, 4.0, "episodes", 1.5)


def test_a_rate_has_wilson_s_interval_over_all_episodes() -> None:
    same = {"episodes": 200.0, "metric": "success_once"}
    runs = [line("0", mean=90.0, **same), line("1", mean=80.0, **same)]
    found = figures(rows_of(runs)["s/m/t"])
    low, high = wilson(340, 400)
    assert (found.value, found.kind) == (85.0, "wilson")
    assert (found.low, found.high) == (100 * low, 100 * high)


def test_an_aggregate_keeps_what_was_recorded() -> None:
    found = figures(rows_of([line(seeds=3, iqm=5.0, iqm_low=4.0, iqm_high=7.0)])["s/m/t"])
    assert (found.statistic, found.value, found.low, found.high) == ("IQM", 5.0, 4.0, 7.0)
    assert (found.kind, found.seeds) == ("recorded", 3)
    bare = figures(rows_of([line("0", mean=5.0)])["s/m/t"])
    assert bare.kind == "" and math.isnan(bare.low)


def test_rows_that_differ_in_versions_or_deployment_are_said() -> None:
    first = line("0", mean=1.0, versions="rheo 1", method="a")
    other = line("0", mean=1.0, versions="rheo 2", method="b", deployment="policy.steps=4")
    rows = [*rows_of([first]).values(), *rows_of([other]).values()]
    text = pages.protocol(rows)
    assert "**Versions differ**: rheo 1 (a); rheo 2 (b)." in text
    assert "Deployed: as shipped (a); policy.steps=4 (b)." in text
    mixed = rows_of([line("0", mean=1.0, versions="x"), line("1", mean=2.0, versions="y")])
    assert "**Versions differ**: x (m); y (m)." in pages.protocol(list(mixed.values()))
    noted = rows_of([line(seeds=2, note="slow"), line("0", mean=1.0), line("1", mean=2.0)])
    assert pages.protocol(list(noted.values())).endswith(" m: slow.")
    same = pages.protocol(rows[:1])
    assert "differ" not in same and "Deployed: as shipped." in same


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    lines = [line("0", mean=1234.5678, episodes=50.0), line(seeds=2, note='a "b", c')]
    file = tmp_path / "a.csv"
    file.write_text(text_of(lines))
    again = lines_of(file, Line)
    assert text_of(again) == file.read_text() and again[1].note == 'a "b", c'
    assert again[0].mean == 1234.5678 and math.isnan(again[0].low) and again[1].seeds == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,environment,metric,method,mean\na,b,return,m,x\n", "a.csv:2: mean='x': a number"),
        ("row,environment,metric,method,wrong\na,b,return,m,1\n", "unknown column 'wrong'"),
        ("row,environment,metric,method,mean\na,b\n", "a.csv:2: cells are missing"),
        ("row,environment,metric\na,b,return\n", "a.csv: lacks the column 'method'"),
    ],
)
def test_a_summary_that_cannot_be_read_names_the_line(tmp_path, text, message) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(RheoError, match=re.escape(message)):
        lines_of(file, Line)


def test_a_row_that_is_said_twice_is_refused() -> None:
    with pytest.raises(RheoError, match="two lines of seed 0"):
        rows_of([line("0"), line("0")])
    with pytest.raises(RheoError, match="two lines without a seed"):
        rows_of([line(), line()])


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("title: T\n", "a page needs title: and sections:"),
        ("title: T\nsections: [{title: S, row: x}]\n", "unknown key 'row'"),
        ("title: T\nsections: [{title: S, rows: x}]\n", "rows: x: no such rows in p.csv"),
        ("title: [\n", "not readable"),
    ],
)
def test_a_page_that_cannot_be_made_is_one_line(tmp_path, capsys, page, message) -> None:
    (tmp_path / "p.yaml").write_text(page)
    (tmp_path / "p.csv").write_text(text_of([line("0", mean=1.0)]))
    assert main(["report", f"summaries={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_words_of_report_that_do_not_go_with_summaries_are_refused(tmp_path, capsys) -> None:
    assert main(["report", f"summaries={tmp_path}"]) == 2
    assert "out=FOLDER says where" in capsys.readouterr().err
    assert main(["report", f"summaries={tmp_path}", "out=x", "metric=score"]) == 2
    assert main(["report", f"summaries={tmp_path}", f"out={tmp_path}"]) == 2
    assert "no page in it" in capsys.readouterr().err


def test_the_table_of_speed_is_its_file() -> None:
    with (SUMMARIES / "speed.csv").open() as file:
        first, *rows = list(csv.reader(file))
    text = (DOCS / "bench" / "speed.md").read_text()
    assert all(f"| {' | '.join(row)} |" in text for row in [first, *rows])
