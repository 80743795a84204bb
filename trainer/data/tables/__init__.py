"""Tables of image names and tags, as spreadsheets and scripts write them."""
