"""The parser of the programs in this folder: their docstring is their help, defaults are shown."""

from __future__ import annotations

import argparse


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=Help)
