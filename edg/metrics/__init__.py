"""Metrics of frames: motion, camera, consistency, alignment, distances between sets of clips."""
