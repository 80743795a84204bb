"""What a server tells of itself: metrics, logs, traces, and the HTTP port for Prometheus and
probes.
"""
