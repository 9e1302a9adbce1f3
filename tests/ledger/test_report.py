"""The report of a ledger whose days are known."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from desk import rules

from creatify_exporter.config.plan import Plan
from creatify_exporter.creatify.task import Task
from creatify_exporter.errors import ConfigError, LedgerRefused
from creatify_exporter.ledger import report
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.lists import TEXT_GENERATOR

HEADER = [
    *("day", "workspace", "api", "model", "submitted", "finished", "failed"),
    *("used", "refunded", "net", "failed_net", "cost", "currency"),
]
PLANS = {"default": Plan(price_per_credit=0.15, currency="USD")}
LIST = TEXT_GENERATOR.api
BEGAN = f"default ({LIST}): counting began on 2026-09-30 at 23:59 UTC."


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def task(identity: str, created: datetime, status: str = "done", credits_used: float = 0.0, model: str = "pro") -> Task:
    return Task(id=identity, model_name=model, status=status, credits_used=credits_used, created_at=created)


def recorded(ledger: Ledger, moment: datetime, *tasks: Task, workspace: str = "default", api: str = LIST) -> None:
    with closing(ledger.begin(workspace, api)) as transaction:
        transaction.add(list(tasks))
        assert ledger.commit(transaction, moment.timestamp())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a ledger of three days in two months; each list is recorded just before midnight."""
    file = tmp_path / "ledger.db"
    with closing(Ledger(SqliteStore(file), rules())) as ledger:
        september, october, next_day = at("2026-09-30T23:59:59"), at("2026-10-01T23:59"), at("2026-10-02T23:59")
        hour = timedelta(hours=1)
        recorded(ledger, september, task("a", september - hour, "running", 1.5))
        recorded(ledger, october, task("a", september - hour, "done", 2.5), task("b", october - hour, "failed", 0.25))
        fast = task("d", next_day - hour, "done", 0.125, model='flash, "fast"')
        recorded(
            ledger, next_day, task("b", october - hour, "failed", 0.0), task("c", next_day - hour, "pending"), fast
        )
        recorded(ledger, next_day, task("e", next_day - hour, "done", 1e6 / 3), workspace="second")
    return file


def write(path: Path, month: str | None, *, as_csv: bool, plans: Mapping[str, Plan] | None = None) -> None:
    with closing(SqliteStore(path, read_only=True)) as store:
        report.write(store, plans or {}, month, as_csv=as_csv)


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Return the cells of a table; empty cells at the end of a line are missing."""
    return [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]


OCTOBER = [
    ["2026-10-01", "default", LIST, "pro", "1", "2", "1", "1.25", "0", "1.25", "0.25", "0.1875", "USD"],
    ["2026-10-02", "default", LIST, 'flash, "fast"', "1", "1", "0", "0.125", "0", "0.125", "0", "0.01875", "USD"],
    ["2026-10-02", "default", LIST, "pro", "1", "0", "0", "0", "0.25", "-0.25", "-0.25", "-0.0375", "USD"],
    ["2026-10-02", "second", LIST, "pro", "1", "1", "0", "333333.333333", "0", "333333.333333", "0", "", ""],
]


def test_a_month_is_printed_by_day_then_by_model_then_as_a_whole_with_costs_rounded_once(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, "2026-10", as_csv=False, plans=PLANS)
    costs = ["0.19", "0.02", "-0.04"]
    *table, note, _ = lines(capsys)
    assert table == [
        HEADER,
        *([*line[:11], cost, "USD"] for line, cost in zip(OCTOBER, costs, strict=False)),
        OCTOBER[3][:11],
        ["2026-10", "default", LIST, 'flash, "fast"', "1", "1", "0", "0.125", "0", "0.125", "0", "0.02", "USD"],
        ["2026-10", "default", LIST, "pro", "2", "2", "1", "1.25", "0.25", "1", "0", "0.15", "USD"],
        ["2026-10", "second", LIST, "pro", "1", "1", "0", "333333.333333", "0", "333333.333333", "0"],
        # 0.16875, although the costs of its models add up to 0.17 only by chance, and those of its days do not.
        ["2026-10", "default", LIST, "all models", "3", "3", "1", "1.375", "0.25", "1.125", "0", "0.17", "USD"],
        ["2026-10", "second", LIST, "all models", "1", "1", "0", "333333.333333", "0", "333333.333333", "0"],
        ["2026-10", "default", "all lists", "all models", "3", "3", "1", "1.375", "0.25", "1.125", "0", "0.17", "USD"],
        ["2026-10", "second", "all lists", "all models", "1", "1", "0", "333333.333333", "0", "333333.333333", "0"],
    ]
    assert note == ["second (text_generator): counting began on 2026-10-02 at 23:59 UTC."]


def test_the_lists_of_a_workspace_that_begin_together_share_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, began = tmp_path / "ledger.db", at("2026-10-02T23:58")
    names = ["aurora", "boreal", "lipsyncs", LIST]
    with closing(Ledger(SqliteStore(path), rules())) as ledger:
        for number, name in enumerate(reversed(names)):
            recorded(ledger, began + timedelta(seconds=20 * number), task("a", began), api=name)
        recorded(ledger, began, task("a", began), workspace="second")
    write(path, "2026-10", as_csv=True)
    printed = capsys.readouterr()
    *notes, explained = printed.err.splitlines()
    assert notes == [
        f"default (boreal, lipsyncs, {LIST}): counting began on 2026-10-02 at 23:58 UTC.",
        "default (aurora): counting began on 2026-10-02 at 23:59 UTC.",
        f"second ({LIST}): counting began on 2026-10-02 at 23:58 UTC.",
    ]
    assert explained.startswith("Everything before that comes from the first list")
    # So are the sums.
    write(path, "2026-10", as_csv=False)
    whole = [line[1:3] for line in lines(capsys) if line[3:4] == ["all models"]]
    assert whole == [
        *(["default", name] for name in names),
        ["second", LIST],
        ["default", "all lists"],
        ["second", "all lists"],
    ]


def test_credits_that_no_list_reports_are_empty_and_not_0(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moment, silent = at("2026-10-02T23:59"), "product_to_videos"
    with closing(Ledger(SqliteStore(path), rules())) as ledger:
        for workspace in ("default", "silent"):
            banner = Task(id="v", model_name="banner", status="failed", created_at=moment)
            recorded(ledger, moment, banner, workspace=workspace, api=silent)
    plans = {**PLANS, "silent": Plan(price_per_credit=1, currency="EUR")}
    write(path, "2026-10", as_csv=True, plans=plans)
    told = [line for line in _rows(capsys) if line[2] == silent]
    unknown = ["", "", "", "", ""]
    assert told == [
        ["2026-10-02", "default", silent, "banner", "1", "1", "1", *unknown, "USD"],
        ["2026-10-02", "silent", silent, "banner", "1", "1", "1", *unknown, "EUR"],
    ]
    write(path, "2026-10", as_csv=False, plans=plans)
    sums = {(*line[1:3], line[3]): line[4:] for line in lines(capsys) if line[0] == "2026-10"}
    assert sums["default", silent, "all models"] == ["1", "1", "1", "USD"]
    assert sums["silent", "all lists", "all models"] == ["1", "1", "1", "EUR"]
    # A sum over lists covers the lists that report credits.
    assert sums["default", "all lists", "all models"][3:] == ["1.375", "0.25", "1.125", "0", "0.17", "USD"]


def test_no_name_in_the_csv_is_a_formula_of_a_spreadsheet(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ['=HYPERLINK("http://example.com")', "+1", "-1", "@SUM(A1)"]
    moment = at("2026-10-02T23:59")
    with closing(Ledger(SqliteStore(path), rules())) as ledger:
        tasks = [task(name, moment, "done", 0.5, model=name) for name in names]
        recorded(ledger, moment, *tasks, workspace="=odd")
    write(path, "2026-10", as_csv=True)
    odd = [line for line in _rows(capsys) if line[1] == "'=odd"]
    assert {line[3] for line in odd} == {f"'{name}" for name in names}
    write(path, "2026-10", as_csv=False)
    assert {line[3] for line in lines(capsys) if line[1:2] == ["=odd"]} == {*names, "all models"}


def test_each_workspace_has_its_own_currency_and_its_smallest_unit(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = {
        "default": Plan(price_per_credit=100.5, currency="RWF"),
        "second": Plan(price_per_credit=1e-7, currency="KWD"),
    }
    write(path, "2026-10", as_csv=False, plans=plans)
    assert [line[-2:] for line in lines(capsys) if "all lists" in line] == [["113", "RWF"], ["0.033", "KWD"]]
    dearest = Plan(price_per_credit=1e9, currency="KWD")
    write(path, "2026-10", as_csv=False, plans={"second": dearest})
    assert [line[-2:] for line in lines(capsys) if "all lists" in line][1] == ["333333333333000.000", "KWD"]


def test_days_of_an_earlier_version_do_not_know_the_credits_of_failed_tasks(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(SqliteStore(path)) as store, store.writing() as sql:
        sql.execute("DELETE FROM day WHERE total LIKE 'failed_%'")
        for each in ("default", "second"):
            store._write_checksum(sql, each, LIST)  # noqa: SLF001 - the file must look like one of that version
    write(path, "2026-10", as_csv=False)
    wasted = {(*line[:2], line[3]): line[10:] for line in lines(capsys)[1:-2]}
    assert wasted["2026-10-01", "default", "pro"] == wasted["2026-10", "default", "all models"] == []
    assert wasted["2026-10-02", "second", "pro"] == ["0"]


def test_columns_are_aligned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "2026-10", as_csv=False, plans={**PLANS, "second": Plan(price_per_credit=1, currency="EUR")})
    printed = capsys.readouterr().out.splitlines()[:-2]
    ends = {line.rindex(cell) + len(cell) for line, cell in ((each, each.split()[-1]) for each in printed)}
    assert len(ends) == 1


def test_csv_has_only_the_days_and_quotes_where_needed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "2026-10", as_csv=True, plans=PLANS)
    printed = capsys.readouterr()
    assert "\r" not in printed.out
    assert '"flash, ""fast"""' in printed.out
    assert list(csv.reader(io.StringIO(printed.out))) == [HEADER, *OCTOBER]
    assert printed.err.startswith("second (text_generator): counting began")


def test_changes_before_midnight_utc_belong_to_the_previous_month(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, "2026-09", as_csv=True)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:] == [f"2026-09-30,default,{LIST},pro,1,0,0,1.5,0,1.5,0,,"]
    assert printed.err.startswith(BEGAN)


def _rows(capsys: pytest.CaptureFixture[str]) -> Iterable[list[str]]:
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]


@pytest.mark.parametrize("month", ["2026-11", "1970-01", "9999-11"])
def test_a_month_without_totals_says_so_and_its_csv_has_the_header_only(
    path: Path, capsys: pytest.CaptureFixture[str], month: str
) -> None:
    write(path, month, as_csv=False)
    assert capsys.readouterr().out.splitlines()[-1] == f"The ledger has no totals for {month}."
    write(path, month, as_csv=True)
    assert _rows(capsys) == []


def test_without_a_month_it_is_this_one_in_utc(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = f"{datetime.now(UTC):%Y-%m}"
    write(path, None, as_csv=False)
    assert (
        f"The ledger has no totals for {before}." in capsys.readouterr().out or before != f"{datetime.now(UTC):%Y-%m}"
    )


@pytest.mark.parametrize(
    "month",
    [
        "2026",
        "2026-13",
        "2026-00",
        "0000-01",
        "9999-12",
        "10-2026",
        "2026-1",
        "2026-10-01",
        " 2026-10",
        "-",
        "2026-1\u0660",
    ],
)
def test_an_invalid_month_is_refused_in_one_line(path: Path, month: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write(path, month, as_csv=False)
    (problem,) = caught.value.problems
    assert problem.startswith(f"--month {month}: ")
    assert "2026-10" in problem


def test_a_missing_ledger_is_refused_and_not_created(tmp_path: Path) -> None:
    missing, foreign = tmp_path / "missing.db", tmp_path / "foreign.db"
    with pytest.raises(LedgerRefused, match=r"missing\.db"):
        write(missing, "2026-10", as_csv=False)
    assert not missing.exists()
    foreign.write_text("somebody's notes\n" * 100)
    with pytest.raises(LedgerRefused, match="not a ledger"):
        write(foreign, "2026-10", as_csv=False)
    with pytest.raises(LedgerRefused):
        write(tmp_path, "2026-10", as_csv=False)


def test_a_report_does_not_disturb_a_writer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(Ledger(SqliteStore(path), rules())) as ledger:
        recorded(ledger, at("2026-10-02T23:59:30"), task("f", at("2026-10-02T23:59"), model="new"))
        write(path, "2026-10", as_csv=True)
        assert ["2026-10-02", "default", LIST, "new", "1", "1", "0", "0", "0", "0", "0", "", ""] in _rows(capsys)
        recorded(ledger, at("2026-10-02T23:59:40"), task("g", at("2026-10-02T23:59"), model="new"))
