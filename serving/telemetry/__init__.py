"""Observability: metrics, logs, traces, and the HTTP port for Prometheus and probes."""
