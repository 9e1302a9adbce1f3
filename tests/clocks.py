"""A clock that stands still unless a test moves it."""

from dataclasses import dataclass


@dataclass
class ManualClock:
    """Returns `at`, in seconds, whenever it is asked; fit for any argument that takes a clock."""

    at: float = 0.0

    def __call__(self) -> float:
        return self.at
