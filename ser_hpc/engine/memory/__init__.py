"""Find how many seconds of audio a micro-batch may hold: a model of the memory, and a search where it is measured."""
