"""``python -m trainer``, which is what torchrun starts."""

from trainer.cli import main

main()
