"""Test-time options: what a model answers with more samples, more frames or a teacher's help.

Each is a `Respond` of the runner. Its rows have its mode and keep the votes, the patch and the counted calls
in `extra`; tables show them apart from plain accuracy.
"""

from ffr.eval.options.repair import REPAIRED, BudgetedRepair
from ffr.eval.options.sparse import sparse_to_dense
from ffr.eval.options.vote import majority_vote

__all__ = ["REPAIRED", "BudgetedRepair", "majority_vote", "sparse_to_dense"]
