"""Frames in, numbers out: motion, camera, consistency, alignment, distances between sets of clips."""
