"""One program per contender, each in a process of its own, so that memory is its own and timings alternate."""
