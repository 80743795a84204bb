"""Metrics, logs and traces, and the HTTP port for Prometheus and probes."""
