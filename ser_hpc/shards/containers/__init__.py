"""What an audio file holds, whatever its header says: one file a family of formats."""
