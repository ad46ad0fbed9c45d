"""`python dev.py eval-demo`: how good the demo model is on cases it never saw."""
