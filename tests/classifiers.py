"""Tiny image classifiers of transformers for the digits."""

import torch
from transformers import ViTConfig, ViTForImageClassification

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_classifier(folder, names, *, seed=0, **changes):
    """Write a tiny ViT of random weights that are large enough to prefer some images."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    config = ViTConfig(**{**sizes, "image_size": 8, "patch_size": 4, "num_channels": 1, **labels, **changes})
    torch.manual_seed(seed)
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder
