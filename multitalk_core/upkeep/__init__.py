"""The installation: published files, model folders, what is missing, and what the machine can do."""
