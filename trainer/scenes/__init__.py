"""Synthetic scenes with exact masks: shapes as data, places, one rendered scene, a written data
set.
"""
