"""The classes of transformers that our own models are made of, imported whatever torchvision is beside it."""

from vq_prior.core.processes.packages import leave_out_if_broken

leave_out_if_broken()

from transformers import PretrainedConfig, PreTrainedModel  # noqa: E402

__all__ = ["PreTrainedModel", "PretrainedConfig"]
