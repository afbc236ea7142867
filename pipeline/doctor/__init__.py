"""What can be checked of a machine before the first job. Each file holds one kind of check; all work without torch."""
