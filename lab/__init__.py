"""What only developers need: measurements, parity with the published code, training, and faults that the tests must notice."""
