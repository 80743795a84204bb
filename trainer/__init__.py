"""Train weakly-supervised segmenters: image-level tags in, pixel masks and exported graphs out."""

import os

# onnxruntime reports on its users from the moment it is loaded, unless this says no. Worker
# processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# timm loads huggingface_hub, which reports on its users too. Nothing here downloads with it.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
