"""One signed POST, from a connection to an Outcome, without trusting the receiver, the network or DNS."""
