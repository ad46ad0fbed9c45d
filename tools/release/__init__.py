"""What a release is held against: recorded signatures, and a matrix of versions."""
