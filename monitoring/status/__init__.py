"""The status page: what customers see of how the platform is, and was for ninety days.

These modules run on hosts as `relay-status` too (deploys.lib.status_page puts them there), so they import
nothing but each other, monitoring.rounds and Python's own library.
"""
