"""Serves exported models over gRPC and labels folders with them. Never imports torch or the
trainer.
"""

import os

# onnxruntime reports on its users from the moment it is loaded, unless this says no. Processes that
# the server starts inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
