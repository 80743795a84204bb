"""The commands of ``wsss-serving`` apart from ``serve`` and ``models``, and shared options."""
