"""Find where the sound lies in an audio file, and check its header against the file: one module a family of formats."""
