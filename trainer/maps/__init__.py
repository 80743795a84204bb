"""Class activation maps: their files, and how views are merged."""
