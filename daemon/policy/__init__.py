"""What an outcome means: pure functions. Clock, chance and I/O come in as arguments."""
