"""Serve: the teacher and the leak gate, or a model, as a small HTTP service; torch-free."""

from ffr.serve.analyze import RepairService
from ffr.serve.app import BadRequest, ServeConfig, Server, Service, is_loopback

__all__ = ["BadRequest", "RepairService", "ServeConfig", "Server", "Service", "is_loopback"]
