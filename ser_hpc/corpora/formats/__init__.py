"""Parsers of general formats: a CSV or JSONL table, a dataset of Hugging Face, a database in audformat, WebDataset tars."""
