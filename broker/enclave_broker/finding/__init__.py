"""Where workers are found, and the links to them, which come and go while the broker runs."""
