"""The truth about a history: the counts that must result from what happened and which lists showed it.

It knows all lists and the story of each task at once, keeps no running state, and computes every count from the whole
sequence: a task has finished if any list showed it finished; its credits are the rises and falls between the values
in consecutive lists; a run of failures is the number of failures in lists after the last one with a success. None of
it is taken from the code under test.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import floor

from creatify_exporter.ledger.state import Rules

BOUNDS = ("5.0", "10.0", "20.0", "30.0", "60.0", "120.0", "300.0", "600.0", "1800.0", "3600.0", "+Inf")
ONE_EACH = ["submitted", "finished", "vanished", "credits_used", "credits_refunded", "duration_sum"]
ONE_EACH += ["failed_credits_used", "failed_credits_refunded"]
CREDITS = ("credits_used", "credits_refunded", "failed_credits_used", "failed_credits_refunded")
BY_DAY = ("submitted", "finished", "failed", *CREDITS)
FINAL = ("done", "failed")

Name = tuple[str, str, str]  # model, total, label


@dataclass(frozen=True)
class Shown:
    """A task as one list shows it, after the best of its entries has been chosen."""

    status: str
    credits_used: float | None
    reason: str
    model: str
    created_at: float | None


@dataclass(frozen=True)
class Recorded:
    """A list that the ledger has recorded, complete at `now`, with the exporter's clock and rules at that time."""

    now: float
    clock: float
    rules: Rules
    shown: dict[str, Shown]
    has_dates: bool


@dataclass(frozen=True)
class Event:
    """A change of a count by one task, in the list with the number `list`."""

    list: int
    task: str
    total: str
    amount: float = 1.0
    label: str = ""


class Story:
    """A task and how each recorded list has shown it: None for a list that lacked it."""

    def __init__(self, name: str, lists: Sequence[Recorded], watermarks: Sequence[float]) -> None:
        self.name, self.lists, self.watermarks = name, lists, watermarks
        self.said = [each.shown.get(name) for each in lists]
        self.first = self._listed[0]
        created_at = self._shown(self.first).created_at
        self.dated = created_at is not None
        self.created_at = lists[self.first].now if created_at is None else created_at

    @property
    def counts(self) -> bool:
        """Whether it was new when it was first shown, and not older than the watermark of the previous list."""
        return not self.dated or self.first == 0 or self.created_at >= self.watermarks[self.first - 1]

    @property
    def model(self) -> str:
        return self._shown(self.first).model

    @property
    def skipped(self) -> bool:
        """Whether it existed before counting began."""
        return self.first == 0 and self.lists[0].rules.history == "skip"

    def tracked(self) -> bool:
        return self.counts and self.valid_for() is None

    def valid_for(self) -> int | None:
        """Return the number of the list after which no change is expected, None if there is no such list."""
        for number in range(self.first, len(self.lists)):
            if self.created_at < self.watermarks[number] and self._quiet(number):
                return number
        return None

    def events(self) -> Iterator[Event]:
        """Yield the changes that count, up to the list with which it settles."""
        if not self.counts:
            return
        end = self.valid_for()
        last = len(self.lists) - 1 if end is None else end
        if not self.skipped:
            yield self._event(self.first, "submitted")
        yield from self._credits(last)
        yield from self._ends(last)
        if end is not None and self._finished(end) is None:
            yield self._event(end, "vanished")

    def net_credits(self) -> float:
        """Return its credits in the last list that reported them, minus those from before counting began."""
        if not self.counts:
            return 0.0
        end = self.valid_for()
        told = self._told(len(self.lists) - 1 if end is None else end)
        return told[-1][1] - (told[0][1] if self._told_at_start() else 0.0) if told else 0.0

    @property
    def _listed(self) -> list[int]:
        return [number for number, shown in enumerate(self.said) if shown]

    def _event(self, number: int, total: str, amount: float = 1.0, label: str = "") -> Event:
        return Event(number, self.name, total, amount, label)

    def _told(self, last: int) -> list[tuple[int, float]]:
        numbered = ((number, shown) for number, shown in enumerate(self.said[: last + 1]) if shown)
        return [(number, shown.credits_used) for number, shown in numbered if shown.credits_used is not None]

    def _told_at_start(self) -> bool:
        return self.skipped and bool(self._told(0))

    def _finished(self, last: int) -> int | None:
        """Return the number of the first list that showed it done or failed."""
        return next((n for n in self._listed if n <= last and self._shown(n).status in FINAL), None)

    def _failed(self, last: int) -> int | None:
        return next((n for n in self._listed if n <= last and self._shown(n).status == "failed"), None)

    def _shown(self, number: int) -> Shown:
        shown = self.said[number]
        assert shown
        return shown

    def _credits(self, last: int) -> Iterator[Event]:
        told = self._told(last)
        steps = [*([] if self._told_at_start() else [(-1, 0.0)]), *told]
        failed = self._failed(last)
        for (_, before), (number, after) in pairwise(steps):
            yield from self._signed(number, "credits", after - before)
            if failed is not None and number > failed:
                yield from self._signed(number, "failed_credits", after - before)
        if failed is not None and not (self.skipped and failed == 0):
            until = [value for number, value in told if number <= failed]
            base = steps[0][1]
            yield from self._signed(failed, "failed_credits", (until[-1] if until else base) - base)

    def _signed(self, number: int, total: str, amount: float) -> Iterator[Event]:
        if amount:
            yield self._event(number, f"{total}_{'used' if amount > 0 else 'refunded'}", abs(amount))

    def _ends(self, last: int) -> Iterator[Event]:
        finished, failed = self._finished(last), self._failed(last)
        if failed is not None and not (self.skipped and failed == 0):
            yield self._event(failed, "failed", label=self._shown(failed).reason)
        if finished is not None and not (self.skipped and finished == 0):
            yield self._event(finished, "finished")
            if finished != failed:
                yield self._event(finished, "done")  # not a series, but the end of a run of failures
            if self._seen_finishing(finished):
                took = max(0.0, self.lists[finished].now - self.created_at)
                yield self._event(finished, "duration_bucket", label=next(b for b in BOUNDS if took <= float(b)))
                yield self._event(finished, "duration_sum", took)

    def _seen_finishing(self, number: int) -> bool:
        if number == 0 or not self.dated:
            return False
        before = self.lists[number - 1].now
        return self.lists[number].now - before <= 900 and (bool(self.said[number - 1]) or self.created_at > before)

    def _quiet(self, number: int) -> bool:
        now, wait = self.lists[number].now, self.lists[number].rules.settle_after
        since = max(n for n in self._listed if n <= number) + 1
        gaps = (after.now - before.now for before, after in pairwise(self.lists[since : number + 1]))
        # One gap, however long, counts as at most half of it; a clock step backwards can only undo absence.
        *_, absence = accumulate(gaps, lambda sum_, gap: max(0.0, sum_ + min(gap, wait / 2)), initial=0.0)
        long_absent = absence >= wait
        if self._finished(number) is None:
            return long_absent
        if number == 0 and self.dated:
            return True  # the first list reports the past
        return now - self.lists[self._changed(number)].now >= wait and (self.dated or long_absent)

    def _changed(self, last: int) -> int:
        """Return the number of the last list that showed anything new."""
        states = [(n, self.state(n)) for n in self._listed if n <= last]
        return max([self.first, *(n for (_, before), (n, after) in pairwise(states) if before != after)])

    def state(self, number: int) -> tuple[str, float | None]:
        """Return what was known of it after a list: its status, and the credits that were reported last."""
        told = self._told(number)
        known = [self._shown(n).status for n in self._listed if n <= number and self._shown(n).status != "unknown"]
        finished = self._finished(number)
        if self._failed(number) is not None:
            status = "failed"
        elif finished is not None:
            status = "done"
        else:
            status = known[-1] if known else "unknown"
        return status, told[-1][1] if told else None


class Truth:
    """The counts that must result from `lists`, which are all that the ledger has recorded."""

    def __init__(self, lists: Sequence[Recorded]) -> None:
        self.lists = lists
        self.watermarks = list(accumulate((floor(each.now - each.rules.settle_after) for each in lists), max))
        names = sorted({name for each in lists for name in each.shown})
        self.stories = {name: Story(name, lists, self.watermarks) for name in names}
        self.labels = self._admitted()
        self.events = [event for story in self.stories.values() for event in story.events()]

    @property
    def models(self) -> frozenset[str]:
        return frozenset(self.labels.values())

    def totals(self) -> dict[Name, float]:
        totals: defaultdict[Name, float] = defaultdict(float)
        for event in self.events:
            totals[self.labels[event.task], event.total, event.label] += event.amount
        return totals

    def days(self) -> dict[tuple[int, str, str], float]:
        """Return the totals by UTC day; for the first list, which reports the past, that is the day of the creation."""
        days: defaultdict[tuple[int, str, str], float] = defaultdict(float)
        for event in self.events:
            if event.total in BY_DAY:
                now = self.lists[event.list].now
                at = now if event.list else max(0.0, min(now, self.stories[event.task].created_at))
                names = (event.total, f"failed:{event.label}") if event.total == "failed" else (event.total,)
                for name in names:
                    days[int(at // 86400), self.labels[event.task], name] += event.amount
        return days

    def births(self) -> dict[Name, int]:
        """Return all series, and the number of the list that created each of them."""
        births: dict[Name, int] = {}
        for number, each in enumerate(self.lists):
            admitted = {label for name, label in self.labels.items() if self.stories[name].first <= number}
            labels = [("failed", reason) for reason in each.rules.reasons] + [("duration_bucket", b) for b in BOUNDS]
            for model in admitted:
                for total, label in [*((total, "") for total in ONE_EACH), *labels]:
                    births.setdefault((model, total, label), number)
        return births

    def failure_runs(self) -> dict[str, int]:
        """Return for each model how many tasks failed in lists after the last one with a success."""
        last = dict.fromkeys(self.models, -1)
        for event in self.events:
            if event.total == "done":
                last[self.labels[event.task]] = max(last[self.labels[event.task]], event.list)
        failed = [(self.labels[event.task], event.list) for event in self.events if event.total == "failed"]
        return {model: sum(each == model and number > end for each, number in failed) for model, end in last.items()}

    def net_credits(self, model: str) -> float:
        return sum(self.stories[name].net_credits() for name, label in self.labels.items() if label == model)

    def tracked(self) -> int:
        return sum(story.tracked() for story in self.stories.values())

    def _admitted(self) -> dict[str, str]:
        """Return the label value of each task's model; the models of the oldest tasks in a list are admitted first."""
        labels: dict[str, str] = {}
        new = [story for story in self.stories.values() if story.counts]
        for story in sorted(new, key=lambda story: (story.first, not story.dated, story.created_at, story.name)):
            limits, model = self.lists[story.first].rules, self.stories[story.name].model
            known = set(labels.values())
            room = len((known | limits.models) - {"other"}) < limits.max_models
            labels[story.name] = model if model in known | limits.models or room else "other"
        return labels
