"""What a user sees, one theme a file.

Each file ends in `NODES = [...]`, and its list is added here: `NODES = [*speakers.NODES, *video.NODES]`.
"""

NODES = []
