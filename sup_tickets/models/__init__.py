"""Flax Linen models. They know nothing of masks."""

from sup_tickets.models.conv import ConvNet
from sup_tickets.models.lenet import LeNet5, LeNet300
from sup_tickets.models.mlp import MLP
from sup_tickets.models.mobilenet import MobileNetV1, MobileNetV2
from sup_tickets.models.registry import (
    LANGUAGE_MODELS,
    MODELS,
    make_model,
    model_options,
)
from sup_tickets.models.resnet import ResNet
from sup_tickets.models.vgg import VGG
from sup_tickets.models.vit import ViT
from sup_tickets.models.wide_resnet import WideResNet

__all__ = [
    "LANGUAGE_MODELS",
    "MLP",
    "MODELS",
    "VGG",
    "ConvNet",
    "LeNet5",
    "LeNet300",
    "MobileNetV1",
    "MobileNetV2",
    "ResNet",
    "ViT",
    "WideResNet",
    "make_model",
    "model_options",
]
