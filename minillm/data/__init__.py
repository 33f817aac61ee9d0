"""Reading, checking, filtering and tokenising of instruction data, benchmarks and plain text."""
