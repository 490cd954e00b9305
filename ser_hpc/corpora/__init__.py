"""Utterances of a corpus, their labels, and the parsers that read them from disk.

utterance, labels      one clip as annotated; the class that an annotation stands for
registry               parsers by name; parser_contract: what each of them must keep
parsers/, formats/     one small file a corpus; tables, Hugging Face, audformat
public_checkpoints     weights that have learnt from corpora that people test on
demo_speech            synthetic speech, to try everything with

It knows nothing of torch, tars and ranks.
"""
