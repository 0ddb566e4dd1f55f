"""Models registered with fairseq."""
