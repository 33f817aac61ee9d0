"""Pre-training on a corpus that a teacher writes: the text, the corpus, and what students made of it."""
