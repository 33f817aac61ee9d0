"""The worker process, which runs one stage, alone or in a group, and reports its progress."""
