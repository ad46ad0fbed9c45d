"""`python dev.py models`: check, fetch and place the published files."""
