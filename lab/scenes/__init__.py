"""Drawn faces and synthetic speech: what the demo model is trained and tested on."""
