"""From the bytes of an image to its mask or maps, and the forms that those take; server and
labeller share it.
"""
