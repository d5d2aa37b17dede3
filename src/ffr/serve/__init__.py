"""Serve: the teacher and the leak gate as a small HTTP service; torch-free."""

from ffr.serve.analyze import BadRequest, RepairService
from ffr.serve.app import ServeConfig, Server, is_loopback

__all__ = ["BadRequest", "RepairService", "ServeConfig", "Server", "is_loopback"]
