"""The worker process: it runs one stage, alone or as one of a group, and tells how far it is."""
