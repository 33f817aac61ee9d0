"""Instruction data, benchmarks and plain text: read, checked, filtered, tokenised."""
