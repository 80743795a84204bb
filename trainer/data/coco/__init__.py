"""COCO: its JSON, class table, outlines and image names. ``formats/coco.py`` puts them together."""
