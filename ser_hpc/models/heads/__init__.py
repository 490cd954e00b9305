"""Turn a clip's frames into its logits: heads, one file each."""
