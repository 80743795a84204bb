"""Train weakly-supervised segmenters: image-level tags in, pixel masks and exported graphs out."""
