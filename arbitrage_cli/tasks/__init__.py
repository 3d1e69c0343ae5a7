"""What kinds of problems there are: one file each."""
