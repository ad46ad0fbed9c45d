"""A long video on the disk: the job, its segments, source videos, and prompts over time."""
