"""Sound in, embeddings out: files, channels, loudness, and Wav2Vec2."""
