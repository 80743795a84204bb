"""From the bytes of an image to its mask or maps, for the server and for folders alike."""
