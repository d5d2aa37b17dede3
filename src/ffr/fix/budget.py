"""How many teacher calls a run, a step and a question may cost."""

from __future__ import annotations

import threading
from typing import Protocol

from ffr.config import BudgetConfig


class SpendLedger(Protocol):
    """Where the run's count outlives the process; `ffr.fix.cache.Journal` is one."""

    def try_spend(self, limit: int | None) -> bool:
        """Count one call unless `limit` is reached; on disk before it returns True."""
        ...


class Budget:
    """Counts calls before they are made; a call that is refused is not counted.

    Args:
        cfg: The limits; None is no limit.
        ledger: Holds the run's count over restarts and over processes; without one the count starts at 0.

    Example:
        >>> budget = Budget(BudgetConfig(max_calls_per_group=1))
        >>> budget.take("micro/7"), budget.take("micro/7")
        ('', 'group')
    """

    def __init__(self, cfg: BudgetConfig, ledger: SpendLedger | None = None) -> None:
        self._cfg = cfg
        self._ledger = ledger
        self._run = 0
        self._step = 0
        self._groups: dict[str, int] = {}
        # A ledger syncs to disk, so `take` runs off the event loop, several at a time.
        self._lock = threading.Lock()

    def begin_step(self) -> None:
        """Start a step: the step's and the groups' counts go back to 0."""
        with self._lock:
            self._step = 0
            self._groups.clear()

    def take(self, group: str) -> str:
        """Ask for one call on behalf of a group (a sample's uid).

        Returns:
            Empty if granted and counted, else which limit is spent: `group`, `step` or `run`.
        """
        with self._lock:
            spent = self._limit_hit(group)
            if not spent:
                self._run += 1
                self._step += 1
                self._groups[group] = self._groups.get(group, 0) + 1
            return spent

    def _limit_hit(self, group: str) -> str:
        cfg = self._cfg
        if cfg.max_calls_per_group is not None and self._groups.get(group, 0) >= cfg.max_calls_per_group:
            return "group"
        if cfg.max_calls_per_step is not None and self._step >= cfg.max_calls_per_step:
            return "step"
        if self._ledger is not None:
            return "" if self._ledger.try_spend(cfg.max_calls_per_run) else "run"
        if cfg.max_calls_per_run is not None and self._run >= cfg.max_calls_per_run:
            return "run"
        return ""
