"""Who answers: one protocol, a checkpoint in this process or a server. Only `models/hf.py` needs torch."""

from ffr.eval.models.base import Answerer, Generation, ModelIdentity, Reply

__all__ = ["Answerer", "Generation", "ModelIdentity", "Reply"]
