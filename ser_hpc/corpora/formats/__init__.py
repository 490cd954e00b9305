"""Corpora in formats of many: a CSV or JSONL table, a dataset of Hugging Face, a database of audformat."""
