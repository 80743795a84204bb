"""PASCAL VOC: class tables, image lists and annotations. ``formats/voc.py`` puts them together."""
