"""Masks of a model as first drafts in annotation tools: Label Studio's backend, CVAT's function."""
