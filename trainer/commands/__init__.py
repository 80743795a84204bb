"""The commands that ``trainer.cli`` puts together."""
