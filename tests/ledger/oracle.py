"""An accountant who never forgets: what the ledger's design says must be counted of the lists that were recorded.

It keeps every task for ever, asks each time for the whole list at once, and knows nothing of rows, folds or commits.
"""

from collections import defaultdict
from dataclasses import dataclass
from math import floor

from creatify_exporter.creatify.task import Task
from creatify_exporter.ledger.ledger import Rules

RANK = {"pending": 1, "running": 2, "done": 3, "failed": 4}  # what is not documented is unknown, and ranks 0
BOUNDS = ("5.0", "10.0", "20.0", "30.0", "60.0", "120.0", "300.0", "600.0", "1800.0", "3600.0", "+Inf")
ONE_EACH = ["submitted", "finished", "vanished", "credits_used", "credits_refunded", "duration_sum"]
ONE_EACH += ["failed_credits_used", "failed_credits_refunded"]
BY_DAY = ("submitted", "finished", "failed", "credits_used", "credits_refunded")

Name = tuple[str, str, str]  # model, total, label


@dataclass
class Known:
    """A task, as the lists have shown it; `uncounted` credits were there before counting began."""

    model: str
    created_at: float
    dated: bool
    status: str = "unknown"
    credits: float | None = None
    uncounted: float = 0.0
    changed_at: float = 0.0
    absent_since: float | None = None
    last_list: int = 0
    settled: bool = False

    @property
    def finished(self) -> bool:
        return RANK.get(self.status, 0) >= RANK["done"]


class Oracle:
    """`settling=False` makes one that counts what the design lets go of, too: an upper limit of every count."""

    def __init__(self, *, settling: bool = True) -> None:
        self.settling = settling
        self.tasks: dict[str, Known] = {}
        self.totals: defaultdict[Name, float] = defaultdict(float)
        self.days: defaultdict[tuple[int, str, str], float] = defaultdict(float)  # day, model, total
        self.series: dict[Name, float | None] = {}  # when a hold began by the exporter's clock; None: there is none
        self.models: set[str] = set()
        self.mark = float("-inf")
        self.lists, self.dated = 0, False
        self.recorded_at = self.now = float("-inf")

    def believes(self, tasks: list[Task]) -> bool:
        """Whether a list may be recorded: one in which no task tells its date any more must not."""
        return not (self.dated and tasks and not any(task.created_at for task in tasks))

    def record(self, tasks: list[Task], now: float, clock: float, rules: Rules) -> None:
        self.lists, self.now, self.clock, self.rules = self.lists + 1, now, clock, rules
        self.dated = self.dated or any(task.created_at for task in tasks)
        for model in self.models:
            self._bear(model)
        best: dict[str, Task] = {}
        for task in tasks:
            if task.id and (task.id not in best or _weight(task) > _weight(best[task.id])):
                best[task.id] = task
        for task in sorted(best.values(), key=_age):
            known = self.tasks.get(task.id) or self._meet(task)
            if not known.settled:
                self._see(known, task)
            known.last_list = self.lists
        self.mark = max(self.mark, floor(now - rules.settle_after))
        for known in self.tasks.values():
            self._settle(known)
        self.recorded_at = now

    def tracked(self) -> int:
        return sum(not known.settled for known in self.tasks.values())

    def net_credits(self, model: str) -> float:
        mine = [known for known in self.tasks.values() if known.model == model]
        return sum((known.credits or 0.0) - known.uncounted for known in mine)

    def served(self, clock: float, opened_at: float, hold: float) -> dict[Name, float]:
        """Return every series as it is to be served; a hold begins with the birth, or anew with a start after it."""
        for name, born_at in self.series.items():
            if born_at is not None and abs(clock - max(born_at, opened_at)) >= hold:
                self.series[name] = None
        return {name: 0.0 if born_at is not None else self.totals[name] for name, born_at in self.series.items()}

    def _meet(self, task: Task) -> Known:
        dated = task.created_at is not None
        created_at = task.created_at.timestamp() if task.created_at else self.now
        if self.settling and dated and created_at < self.mark:
            known = Known("settled before it was seen", created_at, dated, settled=True)
        else:
            known = Known(self._admit(task.model_name or "unknown"), created_at, dated, changed_at=self.now)
            if self.lists == 1 and self.rules.history == "skip":
                known.status = task.status if task.status in RANK else "unknown"
                known.credits, known.uncounted = task.credits_used, task.credits_used or 0.0
            else:
                self._count(known, "submitted")
        self.tasks[task.id] = known
        return known

    def _see(self, known: Known, task: Task) -> None:
        before = (known.status, known.credits)
        gained = 0.0 if task.credits_used is None else task.credits_used - (known.credits or 0.0)
        known.credits = known.credits if task.credits_used is None else task.credits_used
        self._count_signed(known, "credits_used", "credits_refunded", gained)
        status = task.status if task.status in RANK else "unknown"
        if known.status == "failed":
            self._count_signed(known, "failed_credits_used", "failed_credits_refunded", gained)
        elif status == "failed":
            wasted = (known.credits or 0.0) - known.uncounted
            self._count_signed(known, "failed_credits_used", "failed_credits_refunded", wasted)
            self._count(known, "failed", label=self.rules.classify(task.failed_reason))
        if RANK.get(status, 0) >= RANK["done"] and not known.finished:
            self._count(known, "finished")
            self._time(known)
        if status == "failed" or (status != "unknown" and not known.finished):
            known.status = status
        if (known.status, known.credits) != before:
            known.changed_at = self.now

    def _time(self, known: Known) -> None:
        held_unfinished = self.lists > 1 and known.last_list == self.lists - 1
        recent = self.lists > 1 and self.now - self.recorded_at <= 15 * 60
        if known.dated and recent and (held_unfinished or self.recorded_at < known.created_at):
            took = max(0.0, self.now - known.created_at)
            self._count(known, "duration_bucket", label=next(bound for bound in BOUNDS if took <= float(bound)))
            self._count(known, "duration_sum", took)

    def _settle(self, known: Known) -> None:
        listed = known.last_list == self.lists
        if listed:
            known.absent_since = None
        elif known.absent_since is None:
            known.absent_since = self.now
        if known.settled or not self.settling or known.created_at >= self.mark:
            return
        long_absent = known.absent_since is not None and self.now - known.absent_since >= self.rules.settle_after
        long_unchanged = self.now - known.changed_at >= self.rules.settle_after
        if not known.finished:
            known.settled = long_absent
            self._count(known, "vanished", float(long_absent))
        else:
            first = self.lists == 1 and known.dated
            known.settled = first or (long_unchanged and (known.dated or long_absent))

    def _admit(self, model: str) -> str:
        room = len((self.models | self.rules.models) - {"other"}) < self.rules.max_models
        label = model if model in self.models | self.rules.models or room else "other"
        self.models.add(label)
        self._bear(label)
        return label

    def _bear(self, model: str) -> None:
        names = [(model, total, "") for total in ONE_EACH]
        names += [(model, "failed", reason) for reason in self.rules.reasons]
        names += [(model, "duration_bucket", bound) for bound in BOUNDS]
        for name in names:
            self.series.setdefault(name, None if self.lists == 1 else self.clock)

    def _count_signed(self, known: Known, up: str, down: str, amount: float) -> None:
        self._count(known, up if amount > 0 else down, abs(amount))

    def _count(self, known: Known, total: str, amount: float = 1.0, *, label: str = "") -> None:
        self.totals[known.model, total, label] += amount
        if total in BY_DAY and amount:
            moment = max(0.0, min(known.created_at, self.now)) if self.lists == 1 else self.now
            self.days[int(moment / 86400), known.model, total] += amount


def _weight(task: Task) -> tuple[int, float]:
    return RANK.get(task.status or "", 0), -1.0 if task.credits_used is None else task.credits_used


def _age(task: Task) -> tuple[bool, float, str]:
    return task.created_at is None, task.created_at.timestamp() if task.created_at else 0.0, task.id
