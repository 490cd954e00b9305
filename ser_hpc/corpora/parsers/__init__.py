"""One small file a corpus: its layout, names, counts and defects at the top, then `parse(root) -> ParseResult`."""
