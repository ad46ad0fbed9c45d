"""What developers need and users do not: the environment behind dev.py, and the pack as tests see it."""
