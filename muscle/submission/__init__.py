"""Runs on a cluster that this machine isn't part of: what travels, under what name, and back.

No Ray here: `muscle.launch.jobs` speaks with the job server.
"""
