"""`python dev.py train-demo`: the demo model, from nothing to its four files."""
