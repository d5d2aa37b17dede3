"""Fix: a teacher that says where to look, a gate that keeps the answer out, one status per repair."""

from ffr.fix.ask import NoTeacherError
from ffr.fix.background import run_blocking
from ffr.fix.budget import Budget
from ffr.fix.cache import Journal, JournalError
from ffr.fix.leak import check_leak
from ffr.fix.oracle import OracleTeacher
from ffr.fix.patch import PatchError, PatchReply, parse_patch, patch_json_schema
from ffr.fix.repair import Proposal, RepairFlow, repair
from ffr.fix.teacher import FailureKind, Teacher, TeacherRequest, diagnose, make_teacher

__all__ = [
    "Budget",
    "FailureKind",
    "Journal",
    "JournalError",
    "NoTeacherError",
    "OracleTeacher",
    "PatchError",
    "PatchReply",
    "Proposal",
    "RepairFlow",
    "Teacher",
    "TeacherRequest",
    "check_leak",
    "diagnose",
    "make_teacher",
    "parse_patch",
    "patch_json_schema",
    "repair",
    "run_blocking",
]
