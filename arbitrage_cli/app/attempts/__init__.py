"""Problems in, rows out: selects problems, makes the missing attempts, and stores a row for each."""
