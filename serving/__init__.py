"""Serves exported models over gRPC and labels folders with them. Never imports torch or trainer."""

import os

# ONNX Runtime sends usage data from the moment it is loaded, unless this variable is set. Child
# processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
