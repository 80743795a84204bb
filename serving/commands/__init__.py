"""The commands of ``wsss-serving`` that :mod:`serving.cli` does not hold itself, and the options
that they share.
"""
