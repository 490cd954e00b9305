"""Parsers of published corpora, one file each: layout, names, counts and defects at the top, then `parse(root)`."""
