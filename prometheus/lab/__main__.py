# ruff: noqa: INP001 - a folder that is run by its path, not a package
"""The alert laboratory: `python prometheus/lab --weeks 20`. See docs/alerts.md for its findings."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import replay
import runs
import spikes
import weeks
from weeks import BEGIN

SLACK: Final = 75 * weeks.MINUTE  # after an episode: a window of an hour, and keep_firing_for
GOAL: Final = 600


@dataclass
class Score:
    """How the incidents of one kind fared, at one volume."""

    kind: str
    volume: str
    detected: int = 0
    missed: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    late: int = 0
    below: int = 0
    detected_anyway: int = 0
    alerts: set[str] = field(default_factory=set)


def workspaces(volumes: list[str], long: int, seed: int) -> list[weeks.Workspace]:
    """Return the workspaces to watch: quiet weeks, incidents and events, at each volume."""
    short, sought = min(long, 2), 5 if long >= 5 else 2  # noqa: PLR2004
    found = []
    for volume in volumes:
        # The three large volumes keep the random numbers that they have always had.
        i = 100 * seed - 3 + list(weeks.VOLUMES).index(volume)
        found.append(weeks.Workspace(f"quiet-{volume}", volume, 10 + i, BEGIN, long * 7))
        office = weeks.VOLUMES[volume].rhythm is weeks.office_hours
        plan = (weeks.office_incidents if office else weeks.incidents)(BEGIN, sought)
        found.append(weeks.Workspace(f"incidents-{volume}", volume, 20 + i, BEGIN, sought * 7, plan))
        plan = weeks.events(BEGIN)
        found.append(weeks.Workspace(f"events-{volume}", volume, 30 + i, BEGIN, short * 7, plan, replicas=2))
    return found


def simulate(lab: replay.Replay, worlds: list[weeks.World]) -> None:
    """Write everything that the exporters serve, block by block."""
    minutes = [world.minutes() for world in worlds]
    lab.write((text for each in minutes for text in until(each, end)) for _, end in lab.windows())


def until(minutes: Any, end: int) -> Any:  # noqa: ANN401 - a generator that is resumed for the next block
    """Yield the scrapes of one block."""
    for now, text in minutes:
        yield text
        if now + weeks.MINUTE > end:
            return


def judge(
    workspace: weeks.Workspace, firings: list[replay.Firing], alerts: list[str]
) -> tuple[list[Score], list[replay.Firing]]:
    """Return the scores of the episodes that these alerts should detect, and the firings that no episode explains."""
    mine = [f for f in firings if f.labels.get("workspace") == workspace.name and f.start < workspace.end]
    scores: dict[str, Score] = {}
    for episode in workspace.episodes:
        if not episode.expected.isdisjoint(alerts):
            score = scores.setdefault(episode.kind, Score(episode.kind, workspace.volume))
            rate(score, episode, [f for f in mine if f.alert in episode.expected and concerns(f, episode)])
    false = [f for f in mine if not any(f.alert in e.allowed and concerns(f, e) for e in workspace.episodes)]
    return list(scores.values()), false


def concerns(firing: replay.Firing, episode: weeks.Episode) -> bool:
    """Return whether an alert began during an episode, or while windows still contain it, for the episode's model."""
    about = firing.labels.get("model", episode.model)
    lasts = firing.alert == "CreatifyFailuresHigh" or episode.drifts or episode.cost > 1
    slack = weeks.DAY if lasts else SLACK
    return (episode.model in {"", "*", about}) and episode.start <= firing.start <= episode.end + slack


def reached(episode: weeks.Episode) -> int | None:
    """Return where the delay starts: at the fifth failed task if all fail for an hour, else at the tenth in an hour."""
    if episode.drained:
        return episode.empty_at[0] if episode.empty_at else None
    if episode.holds:
        return episode.start if len(episode.waiting_at) >= 10 else None  # noqa: PLR2004
    if not episode.failing or episode.drifts:
        return episode.start
    if episode.failing == 1 and episode.end - episode.start >= weeks.HOUR:
        failed = sorted(episode.failed_at)
        return failed[4] if len(failed) > 4 else None  # noqa: PLR2004
    return episode.tenth_failure()


def rate(score: Score, episode: weeks.Episode, firings: list[replay.Firing]) -> None:
    """Add one episode to its score; one with too few failed tasks is outside the goal."""
    detected = min((f.start for f in firings), default=None)
    since = reached(episode)
    score.alerts |= {f.alert for f in firings}
    if since is None:
        score.below += 1
        score.detected_anyway += detected is not None
    elif detected is None:
        score.missed.append(f"{episode.model} at {time.strftime('%a %H:%M', time.gmtime(episode.start))}")
    else:
        score.detected += 1
        score.delays.append((detected - since) / 60)
        score.late += bool(episode.failing and not episode.drifts and detected - since > GOAL)


def report(
    scores: list[Score], false: list[replay.Firing], volumes: list[str], long: int, alerts: list[str]
) -> dict[str, Any]:
    """Return all findings, for a table or a test."""
    quiet = dict.fromkeys(alerts, 0)
    for firing in false:
        if firing.labels["workspace"].startswith("quiet"):
            quiet[firing.alert] += 1
    return {
        "weeks": long,
        "volumes": volumes,
        "scores": [{**vars(s), "alerts": sorted(s.alerts)} for s in scores],
        "false_alarms_in_quiet_weeks": quiet,
        "false_alarms": [
            f"{f.alert} {f.labels['workspace']} {f.labels.get('model', '')} day {(f.start - BEGIN) / weeks.DAY:.2f}"
            for f in false
        ],
    }


def table(found: dict[str, Any]) -> str:
    """Return the findings as Markdown."""
    rows = ["| incident | volume | detected | median delay | longest | over 10 min | too few tasks | alerts |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for s in found["scores"]:
        delays = s["delays"]
        middle, longest = (f"{statistics.median(delays):.0f} min", f"{max(delays):.0f} min") if delays else ("-", "-")
        of = s["detected"] + len(s["missed"])
        few = f"{s['below']}, {s['detected_anyway']} detected" if s["detected_anyway"] else s["below"]
        alerts = ", ".join(name.removeprefix("Creatify") for name in s["alerts"]) or "-"
        rows.append(
            f"| {s['kind']} | {s['volume']} | {s['detected']} of {of} | {middle} | {longest} "
            f"| {s['late']} | {few} | {alerts} |",
        )
    quiet = f"{found['weeks']} quiet weeks at {', '.join(found['volumes'])} volume"
    rows += ["", f"| alert | false alarms in {quiet} | a week |", "|---|---|---|"]
    watched = found["weeks"] * len(found["volumes"])
    for alert, count in found["false_alarms_in_quiet_weeks"].items():
        rows.append(
            f"| {alert} | {count} | {f'{count / watched:.2f}' if count else f'0, below {3 / watched:.2f} at 95 %'} |"
        )
    return "\n".join(rows)


def run(volumes: list[str], long: int, seed: int, alerts: list[str], folder: Path) -> dict[str, Any]:
    """Simulate the weeks, evaluate the rules, and judge the alerts."""
    watched = workspaces(volumes, long, seed)
    lab = replay.Replay(folder, BEGIN, max(w.end for w in watched))
    started = time.monotonic()
    simulate(lab, [weeks.World(w) for w in watched])
    print(f"simulated in {time.monotonic() - started:.0f} s", file=sys.stderr)
    recording_rules, alert_rules = replay.needed(alerts)
    lab.record(recording_rules)
    print(f"recorded after {time.monotonic() - started:.0f} s", file=sys.stderr)
    firings = lab.fire(alert_rules)
    print(f"alerts after {time.monotonic() - started:.0f} s", file=sys.stderr)
    names = [rule["alert"] for rule in alert_rules]
    judged = [judge(w, firings, names) for w in watched]
    scores = [score for each, _ in judged for score in each]
    return report(scores, [f for _, false in judged for f in false], volumes, long, names)


def main() -> None:
    """Run the laboratory and print its findings."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--weeks", type=int, default=20, help="quiet weeks at each volume (default: %(default)s)")
    parser.add_argument("--volumes", default=",".join(weeks.VOLUMES), help="some of %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: %(default)s)")
    parser.add_argument("--alert", action="append", default=[], help="evaluate only this alert; may be repeated")
    parser.add_argument("--runs", action="store_true", help="the cost of other run lengths; evaluates no alerts")
    parser.add_argument("--spikes", action="store_true", help="the cost of other spike limits; evaluates no alerts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    volumes = arguments.volumes.split(",")
    if arguments.runs or arguments.spikes:
        print((runs if arguments.runs else spikes).table(volumes, arguments.weeks, arguments.seed))
        return
    with tempfile.TemporaryDirectory(prefix="alert-lab-") as folder:
        found = run(volumes, arguments.weeks, arguments.seed, arguments.alert, Path(folder))
    print(json.dumps(found, indent=1) if arguments.json else table(found))
    if not arguments.json:
        print("\nAll false alarms, eventful weeks included:", *(found["false_alarms"] or ["none"]), sep="\n- ")
        print(
            "\nMissed:",
            *([f"{s['kind']} {s['volume']}: {m}" for s in found["scores"] for m in s["missed"]] or ["none"]),
            sep="\n- ",
        )


if __name__ == "__main__":
    main()
