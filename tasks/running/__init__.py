"""How a stage is found, computed, supervised and planned, whichever it is."""
