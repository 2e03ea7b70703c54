"""Personalized federated learning by backbone self-distillation, over torch.distributed."""

__version__ = "0.1.0"
