"""Serves exported models over gRPC and labels folders with them. Never imports torch or the
trainer.
"""
