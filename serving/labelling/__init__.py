"""A folder of images to a folder of masks, and the forms of that folder."""
