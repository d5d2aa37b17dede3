"""Looking and measuring: traces, metrics, tables, the trace page and the figures. Torch-free."""

from ffr.report.metrics import RunWriter, read_metrics
from ffr.report.page import render_page
from ffr.report.rows import TraceRow
from ffr.report.table import summary_table, summary_text
from ffr.report.trace import TraceError, TraceWarning, read_traces, trace_row

__all__ = [
    "RunWriter",
    "TraceError",
    "TraceRow",
    "TraceWarning",
    "read_metrics",
    "read_traces",
    "render_page",
    "summary_table",
    "summary_text",
    "trace_row",
]
