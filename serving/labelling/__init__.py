"""A folder of images to a folder of masks, in several formats."""
