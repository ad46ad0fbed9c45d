"""Makes the example workflows, the blueprint, and the pictures of the nodes."""
