"""The parser of the programs in this folder: their docstring is their help, defaults are shown."""

from __future__ import annotations

import argparse

BACKBONES = ("mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101")


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=Help)


def add_backbone(parser: argparse.ArgumentParser, about: str) -> None:
    """The option for a network that torchvision has, too."""
    parser.add_argument("--backbone", choices=BACKBONES, default="mobilenet_v2", help=about)
